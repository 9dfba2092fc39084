"""The rollouts of an iteration: a group for each question, groups without a difference replaced.

With two questions and a group size of 3 there are six rollouts. If all three of the first question
earn the same reward, they teach nothing, and another question can be asked in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from research_rl.agents import Rollout
from research_rl.agents.engines import seed_of
from research_rl.envs import Question
from research_rl.trainers.algorithms import Algorithm
from research_rl.trainers.credit import Price
from research_rl.trainers.settings import Updates

_SAME = 1e-9  # variances nearer to each other than this are equal

PlayFn = Callable[[list[Question], list[int]], list[Rollout]]
"""Plays one episode for each question, each with its own seed."""


class Collector:
    """Samples the groups of one iteration.

    Args:
        play: samples rollouts.
        group_size: rollouts of each question.
        resample_rounds: how often groups whose rewards are all equal are replaced; 0 is never.
        seed: of the run.
        price: that rollouts pay out of their rewards; None is none.

    Raises:
        ValueError: groups of one would be replaced; their rewards are always all equal.
    """

    def __init__(
        self,
        play: PlayFn,
        group_size: int,
        resample_rounds: int,
        seed: int,
        price: Price | None = None,
    ) -> None:
        if resample_rounds and group_size < 2:
            raise ValueError(
                f"resample_rounds must be 0 with a group_size of 1, got {resample_rounds}; the "
                "rewards of one rollout are always equal"
            )
        self._play, self._seed, self._price = play, seed, price
        self._group_size, self._rounds = group_size, resample_rounds
        self.num_sampled = 0
        """Rollouts that the latest call sampled, including those that were replaced."""

    def __call__(
        self, questions: Sequence[Question], iteration: int, pool: Sequence[Question] = ()
    ) -> list[Rollout]:
        """Return ``group_size`` rollouts for each question.

        A group whose rewards are all equal is replaced by one of another question from the pool,
        as in DAPO's dynamic sampling (https://arxiv.org/abs/2503.14476). A hash of seed, iteration
        and round chooses the question, so there is no state to save. Groups that are still
        constant after the last round stay.

        Args:
            questions: of this rank.
            iteration: number of the iteration.
            pool: questions that may replace others; if it is empty, none is replaced.
        """
        groups = self._groups(list(questions), iteration, 0)
        self.num_sampled = sum(map(len, groups))
        for number in range(1, self._rounds + 1 if pool else 1):
            constant = [i for i, group in enumerate(groups) if self._constant(group)]
            if not constant:
                break
            keys = (self._seed, "resample", iteration, number)
            drawn = [pool[seed_of(*keys, questions[i].id, i) % len(pool)] for i in constant]
            for i, group in zip(constant, self._groups(drawn, iteration, number), strict=True):
                groups[i] = group
                self.num_sampled += len(group)
        return [rollout for group in groups for rollout in group]

    def _constant(self, group: Sequence[Rollout]) -> bool:
        return len(set(payments(group, self._price))) == 1

    def _groups(
        self, questions: list[Question], iteration: int, number: int
    ) -> list[list[Rollout]]:
        size = self._group_size
        asked = [question for question in questions for _ in range(size)]
        samples: Counter[str] = Counter()
        seeds = []
        for question in asked:
            keys = (self._seed, iteration, question.id, samples[question.id])
            seeds.append(seed_of(*keys, number) if number else seed_of(*keys))
            samples[question.id] += 1
        rollouts = self._play(asked, seeds)
        for rollout, seed in zip(rollouts, seeds, strict=True):
            rollout.seed = seed
        return [rollouts[a : a + size] for a in range(0, len(rollouts), size)]


def check_group_size(updates: Updates, algorithm: Algorithm) -> None:
    """Refuse groups of one where an algorithm compares rollouts, down-sampling where none does.

    Raises:
        ValueError: ``updates.group_size`` is 1 and the algorithm needs groups, or
            ``updates.downsample_to`` is set and it needs none.
    """
    if updates.downsample_to and not algorithm.needs_groups:
        raise ValueError(
            f"downsample_to must be null with {type(algorithm).__name__}, got "
            f"{updates.downsample_to}; it does not compare the rollouts of a group, and a choice "
            "of them by their rewards would mislead it"
        )
    if algorithm.needs_groups and updates.group_size < 2:
        raise ValueError(
            f"group_size must be at least 2 with {type(algorithm).__name__}, got "
            f"{updates.group_size}; a group compares rollouts of one question"
        )


def most_varied(
    values: Sequence[float], size: int, number: int | None, unread: Collection[int] = ()
) -> list[int]:
    """Return which rollouts of each group to learn from: those whose values vary most.

    With values ``[0, 0, 1, 0, 0.1]`` and two to keep these are ``[0, 2]``. It is the max-variance
    down-sampling of PODS (https://arxiv.org/abs/2504.13818): of the choices of some highest and
    otherwise lowest values it takes the one with the largest variance; of choices as good as each
    other, the one with fewer high values.

    Args:
        values: what each rollout has earned, group after group.
        size: rollouts of a group.
        number: to keep of each group; None, or one not below the group's size, keeps all.
        unread: rows that the loss leaves out; they are kept only where a group has too few others.

    Returns:
        Ascending rows.
    """
    if number is None or number >= size:
        return list(range(len(values)))
    kept: list[int] = []
    for start in range(0, len(values), size):
        group = range(start, min(start + size, len(values)))
        rising = sorted(set(group) - set(unread), key=lambda row: (values[row], row))
        if len(rising) <= number:
            others = [row for row in group if row in unread]
            kept += [*rising, *others[: number - len(rising)]]
            continue
        choices = [rising[: number - k] + rising[len(rising) - k :] for k in range(number + 1)]
        spreads = [_variance([values[row] for row in choice]) for choice in choices]
        kept += next(c for c, s in zip(choices, spreads, strict=True) if s > max(spreads) - _SAME)
    return sorted(kept)


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def pool_of(loader: Any) -> Sequence[Question]:
    """Return the training questions of a loader, from which questions are replaced.

    Raises:
        ValueError: it has none.
    """
    pool: Sequence[Question] = getattr(loader, "questions", ())
    if not pool:
        raise ValueError(
            "resample_rounds must have training questions to draw from, got a loader of type "
            f"{type(loader).__name__}; use QuestionDataModule, or set updates.resample_rounds to 0"
        )
    return pool


def payments(rollouts: Sequence[Rollout], price: Price | None = None) -> list[float]:
    """Return what each rollout earns: its reward, minus what it is charged.

    Args:
        rollouts: whole groups.
        price: None charges nothing.
    """
    values = [rollout.reward.value for rollout in rollouts]
    if price is None:
        return values
    return [value - due for value, due in zip(values, price.charges(rollouts), strict=True)]


def as_paid(rollouts: Sequence[Rollout], paid: Sequence[float] | None) -> list[Rollout]:
    """Return the rollouts as a credit sees them: the value of each reward is what was paid.

    The rollouts themselves keep what the environment paid.

    Args:
        rollouts: whole groups.
        paid: of ``payments``; None, where there is no price, changes nothing.
    """
    if paid is None:
        return list(rollouts)
    return [
        replace(rollout, reward=replace(rollout.reward, value=value))
        for rollout, value in zip(rollouts, paid, strict=True)
    ]

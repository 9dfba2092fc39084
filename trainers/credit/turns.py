"""Credit for single turns: what a search was worth, beside the reward of the whole rollout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Literal, TypeAlias, get_args

import torch

from research_rl.agents import Rollout
from research_rl.agents.policy import LMPolicy

Measure = Literal["probability", "logprob"]
ANSWER_PREFIX = "<think> I know enough . </think> <answer> the answer is \\boxed{"
"""Closes the transcript so far, so that the next tokens are the answer."""
_EPSILON = 1e-6

TurnRewards: TypeAlias = Sequence[Sequence[float | None]]
"""A number for each turn of each rollout; None is a turn that is not valued."""


class Credit(ABC):
    """Values each turn of a rollout; ``batch.turn_rewards`` hands it to the algorithm."""

    @abstractmethod
    def turn_rewards(self, rollouts: Sequence[Rollout], policy: LMPolicy) -> TurnRewards:
        """Return one number for each turn of each rollout, in the order of ``rollout.turns``.

        None is a turn that is not valued: it is compared with no other, and adds nothing.

        Args:
            rollouts: whole groups of an iteration, of this rank.
            policy: as it is before the update, on its device; called without gradients.
        """


class InformationGain(Credit):
    """What each result adds to the policy's own probability of the gold answer.

    A turn that searched earns ``p(a | transcript up to its result) - p(a | transcript before the
    turn)``, where ``p`` is the geometric mean of the probabilities of the answer's tokens behind
    ``answer_prefix``; of several gold answers the likeliest counts. The last turn, which answers,
    has no gain: its worth is the rollout's reward. Source: https://arxiv.org/abs/2510.14967.

    Costs one forward pass over each transcript for each of its results and each gold answer,
    without a gradient. Transcripts that are equal, such as the prompts of a group, are scored once.

    Args:
        answer_prefix: what leads from the transcript to the answer, in the format that the policy
            is taught.
        measure: probability, or logprob: the same with the mean log-probability, which also sees
            a gain among unlikely answers.
        max_answers: gold answers that are tried, the first ones; aliases cost a pass each.
        micro_batch_tokens: tokens of one forward pass, padding included.
    """

    def __init__(
        self,
        answer_prefix: str = ANSWER_PREFIX,
        measure: Measure = "probability",
        max_answers: int = 2,
        micro_batch_tokens: int = 16384,
    ) -> None:
        if measure not in get_args(Measure):
            known = ", ".join(get_args(Measure))
            raise ValueError(f"measure must be one of {known}, got {measure!r}")
        for name, value in (
            ("max_answers", max_answers),
            ("micro_batch_tokens", micro_batch_tokens),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.answer_prefix, self.measure = answer_prefix, measure
        self.max_answers, self.micro_batch_tokens = max_answers, micro_batch_tokens

    def turn_rewards(self, rollouts: Sequence[Rollout], policy: LMPolicy) -> TurnRewards:
        """Return the information gain of each turn; see Credit."""
        prefix = policy.encode(self.answer_prefix)
        wanted: dict[_Text, float] = {}
        states = []
        for rollout in rollouts:
            answers = [policy.encode(a) for a in rollout.question.answers[: self.max_answers]]
            before = [
                [(tuple(ids + prefix), tuple(answer)) for answer in answers if answer]
                for ids in transcripts(rollout)
            ]
            states.append(before)
            wanted.update((text, 0.0) for texts in before for text in texts)
        wanted.update(self._score(list(wanted), policy))
        return [
            _gains(
                [max((self._value(wanted[t]) for t in texts), default=0.0) for texts in before],
                len(rollout.turns),
            )
            for rollout, before in zip(rollouts, states, strict=True)
        ]

    def _value(self, logprob: float) -> float:
        return logprob if self.measure == "logprob" else torch.tensor(logprob).exp().item()

    @torch.no_grad()
    def _score(self, texts: list[_Text], policy: LMPolicy) -> Iterator[tuple[_Text, float]]:
        """Yield each text with the mean log-prob of its answer's tokens."""
        texts.sort(key=lambda text: len(text[0]) + len(text[1]))
        for part in _parts(texts, self.micro_batch_tokens):
            rows = [torch.tensor([*given, *answer]) for given, answer in part]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
            real = (torch.arange(ids.shape[1]) < lengths[:, None]).to(policy.device)
            logprobs = policy(ids.to(policy.device), real, entropy=False).logprobs.cpu()
            for text, row in zip(part, logprobs, strict=True):
                given, answer = text
                start = len(given) - 1  # column t speaks about token t + 1
                yield text, row[start : start + len(answer)].mean().item()


class StepGroups(Credit):
    """How a turn did beside other turns that began with the same knowledge.

    Turns of one question's rollouts are a step group if the same results had been shown before
    them, in whatever order; the first turns of all rollouts are one. A turn's credit is its return
    ``discount^(turns that follow) * reward``, less the mean of its step group, over its std; alone
    in its group it is 0. The anchor-state groups of GiGPO, https://arxiv.org/abs/2505.10978. Costs
    nothing.

    Args:
        discount: of a turn; below 1, of two ways to the same reward the shorter is worth more,
            also where both answers are wrong and earn the same little.
        scale_by_std: divide by the std of the step group.
    """

    def __init__(self, discount: float = 0.95, scale_by_std: bool = True) -> None:
        if not 0 < discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {discount}")
        self.discount, self.scale_by_std = discount, scale_by_std

    def turn_rewards(self, rollouts: Sequence[Rollout], policy: LMPolicy) -> list[list[float]]:
        """Return the advantage of each turn in its step group; see Credit."""
        groups: dict[tuple[str, str, frozenset[str]], list[tuple[int, int]]] = defaultdict(list)
        returns = []
        for row, rollout in enumerate(rollouts):
            last = len(rollout.turns) - 1
            value = rollout.reward.value
            returns.append([self.discount ** (last - turn) * value for turn in range(last + 1)])
            for turn in range(last + 1):
                shown = frozenset(rollout.results[:turn])
                groups[rollout.question.id, rollout.question.text, shown].append((row, turn))
        found = [[0.0] * len(values) for values in returns]
        for members in groups.values():
            values = [returns[row][turn] for row, turn in members]
            if len(set(values)) == 1:
                continue
            mean = fmean(values)
            scale = stdev(values) + _EPSILON if self.scale_by_std else 1.0
            for (row, turn), value in zip(members, values, strict=True):
                found[row][turn] = (value - mean) / scale
        return found


_Text = tuple[tuple[int, ...], tuple[int, ...]]
"""What is given, and the answer that is scored behind it, as token ids."""


def transcripts(rollout: Rollout) -> list[list[int]]:
    """Return the ids of the prompt and of all that stands before each turn, one list a turn.

    Where the rollout ends with a result, the whole of it is the last entry.
    """
    sequence = rollout.sequence
    mask = sequence.loss_mask
    begins = [i for i, own in enumerate(mask) if own and not (i and mask[i - 1])]
    if mask and not mask[-1]:
        begins.append(len(mask))
    return [sequence.prompt_ids + sequence.response_ids[:begin] for begin in begins]


def _gains(values: Sequence[float], num_turns: int) -> list[float | None]:
    """Differences of the values of successive states, None for turns that no result follows."""
    gains = [after - before for before, after in pairwise(values)]
    return [*gains, *[None] * num_turns][:num_turns]


def _parts(texts: Iterable[_Text], tokens: int) -> Iterator[list[_Text]]:
    """Cut texts, sorted by length, so that each part fits in so many padded tokens."""
    part: list[_Text] = []
    for text in texts:
        if part and (len(part) + 1) * (len(text[0]) + len(text[1])) > tokens:
            yield part
            part = []
        part.append(text)
    if part:
        yield part


__all__ = [
    "ANSWER_PREFIX",
    "Credit",
    "InformationGain",
    "StepGroups",
    "TurnRewards",
    "transcripts",
]

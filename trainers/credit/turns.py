"""Credit for single turns, in addition to the reward of the whole rollout.

If a search raises the policy's probability of the gold answer from 0.2 to 0.7, InformationGain
gives its turn a credit of 0.5.
"""

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
from research_rl.envs.protocols import RESEARCH

Measure = Literal["probability", "logprob"]
ANSWER_PREFIX = "<think> I know enough . </think> <answer> the answer is \\boxed{"
"""Text behind a transcript of ReSearch, after which the next tokens are the answer."""
_THOUGHT, _MARK = "I know enough .", "\ufdd0"
_EPSILON = 1e-6

TurnRewards: TypeAlias = Sequence[Sequence[float | None]]
"""A number for each turn of each rollout; None is a turn without a credit."""


class Credit(ABC):
    """Gives each turn of a rollout a credit; algorithms read it as ``batch.turn_rewards``."""

    @abstractmethod
    def turn_rewards(self, rollouts: Sequence[Rollout], policy: LMPolicy) -> TurnRewards:
        """Return one number for each turn of each rollout, in the order of ``rollout.turns``.

        None is a turn without a credit: it is not compared with others, and adds nothing.

        Args:
            rollouts: whole groups of an iteration, of this rank. With a price, each
                ``reward.value`` is what is left of it; the F1 and all else stay.
            policy: before the update, on its device, in evaluation mode and without gradients.
        """


class InformationGain(Credit):
    """The increase of the policy's own probability of the gold answer through each result.

    A turn that searched earns ``p(a | transcript up to its result) - p(a | transcript before the
    turn)``. ``p`` is the geometric mean of the probabilities of the answer's tokens behind
    ``answer_prefix``; of several gold answers the likeliest counts. The last turn, which answers,
    has no credit, for the rollout's reward is about it. Source: https://arxiv.org/abs/2510.14967.

    Costs one forward pass without a gradient for each result and each gold answer, over the
    transcript so far. Equal transcripts, such as the prompts of a group, are scored once.

    Args:
        answer_prefix: text between the transcript and the answer, in the format that the policy
            is taught; None is that of the rollout's protocol.
        measure: probability, or logprob for the mean log-probability of the tokens, which also
            shows an increase among unlikely answers.
        max_answers: number of gold answers that are tried, the first ones; each costs a pass.
        micro_batch_tokens: tokens of one forward pass, padding included.
    """

    def __init__(
        self,
        answer_prefix: str | None = None,
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
        wanted: dict[_Text, float] = {}
        states = []
        for rollout in rollouts:
            answers = [policy.encode(a) for a in rollout.question.answers[: self.max_answers]]
            before = [
                [(tuple(ids + prefix), tuple(answer)) for answer in answers if answer]
                for turn, ids in enumerate(transcripts(rollout))
                for prefix in [policy.encode(self._prefix(rollout, turn))]
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

    def _prefix(self, rollout: Rollout, turn: int) -> str:
        """The text between the transcript before a turn and an answer in its place."""
        if self.answer_prefix is not None:
            return self.answer_prefix
        protocol = rollout.protocol
        if protocol == RESEARCH and not any(rollout.opened):
            return ANSWER_PREFIX
        opened = rollout.opened.before(turn, protocol.keeps_eos)
        return protocol.answer(_MARK, _THOUGHT, opened).partition(_MARK)[0]

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
                start = len(given) - 1  # column t is about token t + 1
                yield text, row[start : start + len(answer)].mean().item()


class StepGroups(Credit):
    """A turn's return compared with other turns that began with the same results.

    Turns of one question's rollouts are a step group if the same results had been shown before
    them, in any order; the first turns of all its rollouts are a step group, too. A turn's return
    is ``discount^(turns that follow) * reward``. Its credit is the return minus the mean of its
    step group, divided by their std; alone in its group it is 0. These are the anchor-state groups
    of GiGPO, https://arxiv.org/abs/2505.10978. No forward pass is needed.

    Args:
        discount: of a turn. Below 1, the shorter of two ways to the same reward is worth more,
            even if both answers are wrong and earn the reward of the format alone.
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
"""Token ids of a transcript, and of the answer that is scored behind it."""


def transcripts(rollout: Rollout) -> list[list[int]]:
    """Return for each turn the token ids before it, the prompt included.

    If the rollout ends with a result, the last entry is the whole rollout.
    """
    sequence = rollout.sequence
    mask = sequence.loss_mask
    begins = [i for i, own in enumerate(mask) if own and not (i and mask[i - 1])]
    if mask and not mask[-1]:
        begins.append(len(mask))
    return [sequence.prompt_ids + sequence.response_ids[:begin] for begin in begins]


def _gains(values: Sequence[float], num_turns: int) -> list[float | None]:
    """Differences between successive values; None for turns that are not followed by a result."""
    gains = [after - before for before, after in pairwise(values)]
    return [*gains, *[None] * num_turns][:num_turns]


def _parts(texts: Iterable[_Text], tokens: int) -> Iterator[list[_Text]]:
    """Cut texts, sorted by length, into parts of at most so many tokens, padding included."""
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

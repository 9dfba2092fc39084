"""Ends of turns, and how a sequence goes on after one; every engine uses this.

A turn ends at an end-of-sequence token or where its text holds a stop string such as
``</search>``.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, Literal

import torch
from torch import Tensor

from research_rl.agents.engines.sampling import check_params
from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import SamplingParams, Sequence


class TurnEnd:
    """Tells where a turn ends: at an end-of-sequence id, or where its text holds a stop string.

    A merged token may carry text behind the stop string; the sampled ids are kept as they are.
    Text is decoded only where the last token could complete a stop string.

    Args:
        policy: gives the vocabulary, its text, and the end-of-sequence ids.
        stop: strings that end a turn.
    """

    def __init__(self, policy: LMPolicy, stop: Seq[str]) -> None:
        if not all(stop):
            raise ValueError(f"stop must hold non-empty strings, got {tuple(stop)!r}; drop ''")
        self._policy = policy
        self.stop = tuple(stop)
        self._window = max((len(s.encode()) for s in stop), default=0) + 4
        """Tokens that hold a whole stop string: each has at least one byte, and some to spare."""
        self.table = torch.tensor([self._may_end(i, t) for i, t in enumerate(_texts(policy))])
        """(V,) bool: the token is an end of sequence or could complete a stop string."""

    def _may_end(self, token: int, text: str) -> bool:
        if token in self._policy.eos_ids:
            return True
        return any(
            s in text
            or any(text.startswith(s[-k:]) for k in range(1, len(s)))
            or ("\ufffd" in text and not s.isascii())  # the end of a character of several bytes
            for s in self.stop
        )

    def at(self, stop: Seq[str]) -> TurnEnd:
        """Return one for these stop strings: itself, if they are its own.

        Another one decodes the whole vocabulary, which an engine does not want before every run.
        """
        return self if self.stop == tuple(stop) else TurnEnd(self._policy, stop)

    def of(self, turn: Seq[int]) -> Literal["running", "stop", "eos"]:
        """Judge a turn by its ids; call it after each token, the last one decides."""
        if turn[-1] in self._policy.eos_ids:
            return "eos"
        if not bool(self.table[turn[-1]]):
            return "running"
        tail = self._policy.decode(turn[-self._window :])
        return "stop" if any(s in tail for s in self.stop) else "running"


def begin(
    prompts: Seq[Seq[int]], params: SamplingParams, seeds: Seq[int] | None
) -> tuple[list[Sequence], Tensor]:
    """Return an empty sequence for each prompt, and their seeds (B,) int64, fresh ones if None.

    What every engine does first; see Engine.run for the arguments.

    Raises:
        ValueError: the parameters cannot be sampled with, a prompt has no token, or the number of
            seeds is not the number of prompts.
    """
    check_params(params)
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"a prompt must hold at least one token, got none for prompt {i}")
    return [Sequence(list(prompt)) for prompt in prompts], _seeds(seeds, len(prompts))


def resume(sequence: Sequence, given: list[int] | None, params: SamplingParams) -> bool:
    """Give the environment's reply to a sequence that stopped; return whether it goes on.

    A reply that would leave no token of the budget to write ends the sequence with "length" and
    is not appended.
    """
    if given is None:
        return False
    if len(sequence.response_ids) + len(given) >= params.max_response_tokens:
        sequence.finish = "length"
        return False
    sequence.append_given(given)
    sequence.finish = "running"
    return True


def _seeds(seeds: Seq[int] | None, count: int) -> Tensor:
    """(count,) int64: the given seeds, or fresh ones from torch's global generator."""
    if seeds is None:
        return torch.randint(1 << 62, (count,))
    if len(seeds) != count:
        raise ValueError(f"seeds must be one for each prompt, got {len(seeds)} for {count} prompts")
    wrapped = [(int(s) + (1 << 63)) % (1 << 64) - (1 << 63) for s in seeds]
    return torch.tensor(wrapped, dtype=torch.int64)


def check_finite(logprobs: Tensor) -> None:
    """Refuse samples (B,) from a model that has diverged.

    Raises:
        FloatingPointError: a log-prob is not finite.
    """
    if not bool(logprobs.isfinite().all()):
        raise FloatingPointError(
            f"the policy's logits must be finite, got nan or inf in "
            f"{int((~logprobs.isfinite()).sum())} of {len(logprobs)} sequences; the weights have "
            "diverged or the dtype overflows: lower the learning rate, or use bfloat16 instead of "
            "float16"
        )


def _texts(policy: LMPolicy) -> list[str]:
    """The text of each id that the model can sample, the padded end of its vocabulary too."""
    embeddings: Any = policy.model.get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    known = min(size, len(policy.tokenizer))
    texts = policy.tokenizer.batch_decode(
        [[i] for i in range(known)], clean_up_tokenization_spaces=False
    )
    return [*texts, *[""] * (size - known)]

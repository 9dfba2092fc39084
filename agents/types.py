"""Sequences, rollouts and the engine's contract: what travels between the packages as token ids.

``Rollout.to_row`` makes a rollout one row of JSON, from which each file picks its columns.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal

from research_rl.envs import Question, Reward
from research_rl.envs.protocols import PROTOCOLS, RESEARCH, Opened, Protocol, Search

log = logging.getLogger(__name__)

Finish = Literal["running", "stop", "eos", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How the policy writes.

    Args:
        max_response_tokens: budget of a rollout, sampled and result tokens together.
        max_result_tokens: cap of one result block; passages are dropped from its end, whole,
            until it fits. None for no cap.
        temperature: softmax temperature; 0 is greedy.
        top_p: sample from the smallest set of tokens with this probability; 1 is all.
        top_k: sample from this many of the likeliest tokens; 0 is all.
        stop: strings that end a turn; None is what the protocol of the environment says, and
            ``</search>`` where there is none.
        min_new_tokens: no token that ends a sequence, or could complete a stop string, is sampled
            before the response has this many.
    """

    max_response_tokens: int = 512
    max_result_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] | None = None
    min_new_tokens: int = 0

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a turn."""
        return RESEARCH.stops if self.stop is None else self.stop

    def speaking(self, protocol: Protocol) -> SamplingParams:
        """Return the settings with the stop strings of a protocol, unless they name their own."""
        return self if self.stop is not None else replace(self, stop=protocol.stops)


@dataclass
class Sequence:
    """One growing transcript as token ids.

    ``response_ids``, ``loss_mask`` and ``logprobs`` have equal length R. Retrieved tokens carry
    loss_mask False and logprob 0.
    """

    prompt_ids: list[int]  # [P]
    response_ids: list[int] = field(default_factory=list)  # [R] sampled and given
    loss_mask: list[bool] = field(default_factory=list)  # [R] True where the policy wrote
    logprobs: list[float] = field(default_factory=list)  # [R] under the sampling distribution
    turn_start: int = 0
    """Where the turn being sampled begins in response_ids."""
    finish: Finish = "running"
    versions: list[int] = field(default_factory=list)
    """Of each sampled turn, the iterations that its sampler's weights had learned from; empty where
    nobody noted it."""

    @property
    def turn_ids(self) -> list[int]:
        """The ids of the turn being sampled."""
        return self.response_ids[self.turn_start :]

    def append_sampled(self, token: int, logprob: float) -> None:
        """Add one token that the policy wrote."""
        self.response_ids.append(token)
        self.loss_mask.append(True)
        self.logprobs.append(logprob)

    def append_given(self, ids: Seq[int]) -> None:
        """Add tokens that the environment wrote, and begin the next turn behind them."""
        self.response_ids.extend(ids)
        self.loss_mask.extend([False] * len(ids))
        self.logprobs.extend([0.0] * len(ids))
        self.turn_start = len(self.response_ids)


_ID_COLUMNS = tuple(column.name for column in fields(Sequence))


class TextOnly(Sequence):
    """What a rollout has in place of token ids where only its text is known.

    A model behind a server returns text, so rows of its rollouts have no ids. Such a rollout can be
    read and shown; reading one of its ids raises ValueError.
    """

    def __init__(self) -> None:
        """Hold nothing."""

    def __getattribute__(self, name: str) -> Any:
        if name in _ID_COLUMNS:
            raise ValueError(
                f"a rollout must have token ids for its {name} to be read, got text alone; sample "
                "it with a local model, or encode its text"
            )
        return super().__getattribute__(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextOnly)

    def __repr__(self) -> str:
        return "TextOnly()"


OnStop = Callable[[list[tuple[int, Sequence]]], list[list[int] | None]]
"""Called with the (index, sequence) pairs that just ended a turn (finish is stop or eos); returns
the ids to append to each, or None where the sequence is over."""


class Engine(ABC):
    """Token ids in, token ids out; knows neither text nor rewards."""

    holds_weights: bool = False
    """Whether it samples from weights that ``sync`` gave it, not from the policy's as they are."""

    def sync(self, version: int) -> None:
        """Sample with the policy's weights as they are now from here on.

        Engines in this process always do.

        Args:
            version: iterations that the weights have learned from.
        """
        return

    def room(self) -> int | None:
        """Return the positions that it has for a prompt and its response together.

        None where it has as many as the policy's model, or cannot tell yet.
        """
        return None

    def close(self) -> None:
        """End threads and close connections; a further run begins them anew.

        Engines in this process have none.
        """
        return

    @abstractmethod
    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """Sample every prompt to its end, handing each finished turn to ``on_stop``.

        Args:
            prompts: token ids of each prompt; equal prompts are a group and share their prefill.
            params: how to sample.
            on_stop: what to append after a turn.
            seeds: one for each prompt; equal seeds give equal samples, whatever else is in the
                batch. None draws fresh ones.

        Returns:
            One sequence for each prompt, in order; finish is "stop" or "eos" where on_stop ended
            it and "length" where the budget did.
        """


@dataclass
class Rollout:
    """One finished episode, ready to be learned from."""

    question: Question
    sequence: Sequence
    reward: Reward
    turns: list[str]
    """The policy's own text, one entry a turn."""
    results: list[str]
    """The result blocks as the environment gave them; turns and results alternate."""
    finish_reason: str = ""
    """answer, no_answer, search_budget, turn_budget or length."""
    queries: list[str] = field(default_factory=list)
    passage_ids: list[list[str]] = field(default_factory=list)
    """What each query retrieved, best first."""
    seed: int | None = None
    """What it was sampled with, where somebody kept it."""
    protocol: Protocol = RESEARCH
    """The language of turns and results."""
    opened: Opened = Opened()  # noqa: RUF009 (a tuple)
    """What the prompt had opened in front of the turns."""
    named: str = ""
    """What its row calls the protocol, where that is no dialect that comes with the package."""

    @property
    def protocol_name(self) -> str:
        """What the protocol is called, also one that cannot be had here."""
        return self.named or self.protocol.name

    @property
    def num_searches(self) -> int:
        """How many retrievals the rollout made."""
        return len(self.queries)

    @property
    def whole_turns(self) -> list[str]:
        """The turns, each behind what the prompt had opened of it."""
        keeps = self.protocol.keeps_eos
        return [self.opened.before(n, keeps) + turn for n, turn in enumerate(self.turns)]

    @property
    def searched(self) -> list[list[int]]:
        """For each result, which of ``queries`` were retrieved for it."""
        found: list[list[int]] = []
        place = 0
        for turn, _ in zip(self.whole_turns, self.results, strict=False):
            action = self.protocol.parse(turn)
            found.append([])
            asked = action.queries if isinstance(action, Search) else ()
            for query in asked[: self.protocol.max_queries]:
                if place < len(self.queries) and query == self.queries[place]:
                    found[-1].append(place)
                    place += 1
        return found

    def to_row(self) -> dict[str, Any]:
        """Return the rollout as one flat row, ready for JSON where the question's metadata are.

        ``from_row`` reads it again. The columns of the token ids are left out where there is text
        alone.
        """
        question, reward = self.question, self.reward
        return {
            "question_id": question.id,
            "question": question.text,
            "answers": list(question.answers),
            "metadata": dict(question.metadata),
            "turns": list(self.turns),
            "results": list(self.results),
            "queries": list(self.queries),
            "passage_ids": [list(found) for found in self.passage_ids],
            "prediction": reward.prediction,
            "reward": reward.value,
            "f1": reward.f1,
            "em": reward.em,
            "format_error": reward.format_error,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            **({"parts": dict(reward.parts)} if reward.parts else {}),
            **self._language(),
            **_picked(vars(self.sequence), *_ID_COLUMNS),  # TextOnly has none
        }

    def _language(self) -> dict[str, Any]:
        """The columns of a rollout that is not in ReSearch's tags, or that a prompt had opened."""
        named = {} if self.protocol_name == RESEARCH.name else {"protocol": self.protocol_name}
        return named | ({"opened": list(self.opened)} if any(self.opened) else {})

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Rollout:
        """Return the rollout of a row.

        Columns that a rollout does not have are passed over; None is a column that is not there.

        Args:
            row: what ``to_row`` returned, or text alone: question_id, question, answers, turns,
                results and reward must be there, ids may be missing.

        Raises:
            ValueError: a column is missing, or the ids do not fit together.
        """
        held = {name: value for name, value in row.items() if value is not None}
        needed = ("question_id", "question", "answers", "turns", "results", "reward")
        if missing := [name for name in needed if name not in held]:
            raise ValueError(
                f"a row of a rollout must have {', '.join(missing)}; got {', '.join(held)}"
            )
        return cls(
            Question(
                held["question_id"],
                held["question"],
                tuple(held["answers"]),
                dict(held.get("metadata", {})),
            ),
            _ids_of(held),
            Reward(
                held["reward"], **_picked(held, "f1", "em", "format_error", "prediction", "parts")
            ),
            list(held["turns"]),
            list(held["results"]),
            passage_ids=[list(found) for found in held.get("passage_ids", ())],
            **_picked(held, "finish_reason", "queries", "seed"),
            protocol=_protocol_of(name := held.get("protocol", RESEARCH.name)),
            opened=Opened(*held.get("opened", ())),
            named="" if name in PROTOCOLS else name,
        )


@cache
def _protocol_of(name: str) -> Protocol:
    """The dialect of this name; ReSearch's, and a word in the log, where only a class has it."""
    if name not in PROTOCOLS:
        log.warning(
            "rollouts are in the protocol %s, which is no dialect that comes with research_rl: "
            "their turns are shown as if they were in the tags of research",
            name,
        )
    return PROTOCOLS.get(name, RESEARCH)


def _picked(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return copies of those columns that the row has."""
    found = {name: row[name] for name in names if name in row}
    return {name: list(x) if isinstance(x, list) else x for name, x in found.items()}


def _ids_of(row: Mapping[str, Any]) -> Sequence:
    """Return the token ids of a row; a row without any is text alone."""
    ids = _picked(row, *_ID_COLUMNS)
    if not ids:
        return TextOnly()
    arrays = ("response_ids", "loss_mask", "logprobs")
    if missing := [name for name in ("prompt_ids", *arrays) if name not in ids]:
        raise ValueError(
            f"a row of a rollout must have {', '.join(missing)} beside its token ids, got "
            f"{', '.join(ids)}; leave all of them out where only the text is known"
        )
    sizes = [len(ids[name]) for name in arrays]
    if len(set(sizes)) > 1:
        raise ValueError(
            "response_ids, loss_mask and logprobs of a row must be of one length, got "
            f"{sizes[0]}, {sizes[1]} and {sizes[2]}"
        )
    return Sequence(**ids)


class ModelUnavailable(ConnectionError):
    """No server of a model answers, or none lets us in; says where and what it said last."""

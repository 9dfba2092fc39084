"""Rules of one episode, without I/O: what to search, what the policy reads next, what it is paid.

A step is cut in two around the search: ``begin(action)`` says what to retrieve and changes
nothing, ``finish(found)`` commits the turn. So a search that fails may be tried again, and many
episodes can share one search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

from research_rl.envs.protocols import (
    BUDGET_USED,
    NOTHING_FOUND,
    NOTHING_TO_SEARCH,
    Action,
    Answer,
    Prompt,
    Search,
    Segment,
    parse_action,
    render_result,
)
from research_rl.envs.rewards import FORMAT_REWARD, RewardFunction
from research_rl.envs.types import Passage, Question, RetrieverUnavailable, Reward

_CUT = Reward(0.0, format_error="the episode was cut off before an answer")


@dataclass(frozen=True)
class Rules:
    """What all episodes of an environment have in common.

    Args:
        prompt: what stands in front of the response.
        reward: judges a finished episode.
        max_searches: retrievals an episode may make; None for no limit.
        search_cost: taken off the reward of an answer for each retrieval.
        max_chars: length of the longest observation, in characters.
    """

    prompt: Prompt
    reward: RewardFunction
    max_searches: int | None = None
    search_cost: float = 0.0
    max_chars: int = 32768


class Transition(NamedTuple):
    """What a step returns, in Gymnasium's order."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Episode:
    """One question being answered.

    Attributes:
        question: what is asked.
        segments: the response so far, turns and results in order, each with its writer.
        turns: the policy's texts.
        results: the environment's blocks; ``results[i]`` follows ``turns[i]``.
        queries: what was retrieved; empty and failed queries are not in it.
        passages: what each of ``queries`` found, as far as it is shown.
        failed_results: which of ``results`` tell of a failed search, for a driver to mask.
        reward: the verdict; None while the episode runs.
        reward_answer: the part of the reward that pays the answer, search cost taken off.
        reward_format: the part that pays the form of a wrong answer.
        finish_reason: "" while it runs; then ``answer``, ``no_answer``, ``search_budget``, or
            what the driver gave to :meth:`cut`: ``turn_budget`` or ``length``.
    """

    def __init__(self, question: Question, rules: Rules) -> None:
        self.question = question
        self.rules = rules
        self.segments: list[Segment] = []
        self.turns: list[str] = []
        self.results: list[str] = []
        self.queries: list[str] = []
        self.passages: list[list[Passage]] = []
        self.failed_results: list[int] = []
        self.reward: Reward | None = None
        self.reward_answer = 0.0
        self.reward_format = 0.0
        self.finish_reason = ""
        self._pending: tuple[str, Action] | None = None
        self._has_passages = False
        self._found_nothing = False

    @property
    def prompt(self) -> str:
        """The first observation."""
        return self.rules.prompt.text(self.question.text)

    @property
    def num_searches(self) -> int:
        """How many retrievals the episode made."""
        return len(self.queries)

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.finish_reason != ""

    def reset_info(self) -> dict[str, Any]:
        """Return the info of a reset."""
        return {"question_id": self.question.id, "question": self.question.text}

    def begin(self, action: str) -> str | None:
        """Take a turn and return the query to retrieve, None if nothing is to be retrieved."""
        assert not self.done, "the episode is over"
        parsed = parse_action(action)
        self._pending = (action, parsed)
        if not isinstance(parsed, Search) or self._budget_used:
            return None
        return parsed.query if parsed.query or self.rules.reward.original_rollout else None

    def finish(self, found: Sequence[Passage] | RetrieverUnavailable | None = None) -> Transition:
        """Commit the turn that ``begin`` took.

        Args:
            found: the passages of the query, or why there are none; None if nothing was asked.
        """
        assert self._pending is not None, "begin() comes before finish()"
        turn, action = self._pending
        self._pending, self._has_passages = None, False
        self.turns.append(turn)
        self.segments.append(Segment("policy", turn))
        if not isinstance(action, Search):
            self._end("answer" if isinstance(action, Answer) else "no_answer")
            return self._step("answer" if isinstance(action, Answer) else "malformed")
        if self._budget_used:
            self.cut("search_budget")
            return self._step("search", query=action.query)
        invalid = "" if action.query else "empty_query"
        if isinstance(found, RetrieverUnavailable):
            self._append_failure(found)
            return self._step("search", query=action.query, invalid="retriever_unavailable")
        if found is None:
            self._append(render_result([Passage("", NOTHING_TO_SEARCH)]))
        else:
            self._has_passages, self._found_nothing = True, not found
            self.queries.append(action.query)
            self.passages.append(list(found))
            self._append_passages()
        return self._step("search", query=action.query, invalid=invalid)

    def cut(self, reason: str, turn: str = "") -> None:
        """End the episode without an answer and with reward 0.

        Args:
            reason: kept as ``finish_reason``.
            turn: what the policy had written of the turn that was cut.
        """
        if turn:
            self.turns.append(turn)
            self.segments.append(Segment("policy", turn))
        self.reward, self.finish_reason = _CUT, reason

    def keep_passages(self, count: int) -> str:
        """Show only the ``count`` best passages of the last result and return it.

        A result without passages stays as it is.
        """
        if not self._has_passages:
            return self.results[-1]
        self.passages[-1] = self.passages[-1][:count]
        self.results.pop()
        self.segments.pop()
        self._append_passages()
        return self.results[-1]

    def fork(self) -> Episode:
        """Return an independent copy of the episode as it stands; question and rules are shared."""
        twin = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list):
                setattr(twin, name, value.copy())
        twin.passages = [found.copy() for found in self.passages]
        return twin

    @property
    def _budget_used(self) -> bool:
        limit = self.rules.max_searches
        return limit is not None and self.num_searches >= limit

    def _append(self, result: str) -> None:
        self.results.append(result)
        self.segments.append(Segment("env", result))

    def _append_failure(self, error: RetrieverUnavailable) -> None:
        self.failed_results.append(len(self.results))
        self._append(self._fit([Passage("", f"the search failed: {error}")])[0])

    def _append_passages(self) -> None:
        """Append the result of the last search, noting which of its passages are shown."""
        notes = [NOTHING_FOUND] * self._found_nothing + [BUDGET_USED] * self._budget_used
        text, self.passages[-1] = self._fit(self.passages[-1], "\n\n".join(notes))
        self._append(text)

    def _fit(self, shown: list[Passage], note: str = "") -> tuple[str, list[Passage]]:
        """Render within max_chars: drop whole passages from the end, then halve the first."""
        while True:
            text = render_result(shown, note, escape=not self.rules.reward.original_rollout)
            if len(text) <= self.rules.max_chars or not shown:
                return text, shown
            head = shown[0]
            shown = shown[:-1] if len(shown) > 1 else [_halved(head)] if head.contents else []

    def _end(self, reason: str) -> None:
        """Judge the response; split the reward into what pays the answer and what pays its form."""
        verdict = _judged(self.rules.reward, self.segments, self.question)
        self.finish_reason = reason
        if verdict.f1 > 0:
            floor = min(verdict.value, FORMAT_REWARD)
            paid = verdict.value - self.rules.search_cost * self.num_searches
            self.reward_answer = float(max(paid, floor))
        else:
            self.reward_format = float(verdict.value)
        self.reward = replace(verdict, value=self.reward_answer + self.reward_format)

    def _step(self, action_type: str, query: str = "", invalid: str = "") -> Transition:
        """Return the step that was just committed."""
        info: dict[str, Any] = {
            "action_type": action_type,
            "query": query,
            "num_searches": self.num_searches,
            "num_passages": len(self.passages[-1]) if self._has_passages else 0,
            "invalid": invalid,
        }
        if self.reward is None:
            return Transition(self.results[-1], 0.0, False, False, info)
        error = self.reward.format_error
        # Numbers are floats in every episode: a vector env takes the dtype of an info key from
        # the first row that has it. "episode", "final_obs" and "final_info" are Gymnasium's keys.
        info |= {
            "finish_reason": self.finish_reason,
            "prediction": self.reward.prediction,
            "f1": float(self.reward.f1),
            "em": float(self.reward.em),
            "format": float(error is None),
            "format_error": error or "",
            "reward_answer": self.reward_answer,
            "reward_format": self.reward_format,
        }
        truncated = self.finish_reason == "search_budget"
        return Transition("", float(self.reward.value), not truncated, truncated, info)


def _judged(reward: RewardFunction, segments: list[Segment], question: Question) -> Reward:
    """Return the verdict of a reward function if it is one that a policy can be paid by.

    Raises:
        ValueError: it raised, did not return a Reward, or a number in it is not finite.
    """
    name = f"the reward {type(reward).__module__}.{type(reward).__qualname__}"
    asked = f"for question {question.id!r}"
    try:
        verdict: Any = reward(segments, question)
    except Exception as error:
        raise ValueError(
            f"{name} must not raise on any text, got {type(error).__name__}: {error} {asked}; "
            "`research lint-reward` tries it on many texts"
        ) from error
    if not isinstance(verdict, Reward):
        raise ValueError(
            f"{name} must return a Reward, got {verdict!r} of type {type(verdict).__name__} "
            f"{asked}; return Reward(value, f1=..., em=...)"
        )
    for field in ("value", "f1", "em"):
        number = getattr(verdict, field)
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(
                f"{name} must return a Reward whose {field} is a finite number, got {number!r} "
                f"{asked}"
            )
    return verdict


def _halved(passage: Passage) -> Passage:
    return replace(passage, contents=passage.contents[: len(passage.contents) // 2])

"""Rules of one episode, without I/O: what to search, what the policy reads next, what it is paid.

A step is cut in two around the search: ``begin(action)`` says what to retrieve and changes
nothing, ``finish(found)`` commits the turn. So a search that fails may be tried again, and many
episodes can share one search. What a turn means, and how it is answered, the protocol says.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from research_rl.envs.fitting import fitted
from research_rl.envs.protocols import (
    BUDGET_USED,
    NOTHING_FOUND,
    NOTHING_TO_SEARCH,
    RESEARCH,
    Action,
    Answer,
    Found,
    Opened,
    Prompt,
    Protocol,
    Search,
    Segment,
)
from research_rl.envs.rewards import FORMAT_REWARD, RewardFunction, judged
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
        protocol: the language of turns and replies.
    """

    prompt: Prompt
    reward: RewardFunction
    max_searches: int | None = None
    search_cost: float = 0.0
    max_chars: int = 32768
    protocol: Protocol = RESEARCH

    @property
    def opened(self) -> Opened:
        """What prompt and protocol open of the response, as far as no chat template does."""
        return Opened(self.prompt.opened, self.protocol.begins * self.protocol.keeps_eos)


@dataclass(frozen=True)
class _Asked:
    """One query of the last turn.

    Args:
        query: as it was written.
        note: what it is answered with beside passages.
        invalid: why it is not retrieved, "" if it is.
        runs: whether it is.
        place: of what it found, in ``Episode.passages``.
    """

    query: str
    note: str = ""
    invalid: str = ""
    runs: bool = False
    place: int | None = None


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
        opened: what the prompt opened of the response, see Opened.
        segments: the response so far, turns and results in order, each with its writer; a turn
            begins with what the prompt opened of it.
        turns: the policy's texts, as it wrote them.
        results: the environment's blocks; ``results[i]`` follows ``turns[i]``.
        queries: what was retrieved; empty, failed and refused queries are not in it.
        passages: what each of ``queries`` found, as far as it is shown.
        failed_results: which of ``results`` tell of a failed search, for a driver to mask.
        reward: the verdict; None while the episode runs.
        reward_answer: the part of the reward that pays the answer, search cost taken off.
        reward_format: the part that pays the form of a wrong answer.
        finish_reason: "" while it runs; then ``answer``, ``no_answer``, ``search_budget``, or
            what the driver gave to :meth:`cut`: ``turn_budget`` or ``length``.
    """

    def __init__(self, question: Question, rules: Rules, opened: Opened | None = None) -> None:
        self.question = question
        self.rules = rules
        self.opened = rules.opened if opened is None else opened
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
        self._asked: list[_Asked] = []

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

    def begin(self, action: str) -> list[str]:
        """Take a turn and return the queries to retrieve, none if nothing is to be retrieved."""
        assert not self.done, "the episode is over"
        parsed = self.rules.protocol.parse(self.opening + action)
        self._pending = (action, parsed)
        return [one.query for one in self._to_ask(parsed) if one.runs]

    def finish(self, found: Sequence[Sequence[Passage] | RetrieverUnavailable] = ()) -> Transition:
        """Commit the turn that ``begin`` took.

        Args:
            found: the passages of each query that ``begin`` returned, or why there are none.
        """
        assert self._pending is not None, "begin() comes before finish()"
        turn, action = self._pending
        asked = self._to_ask(action)
        over_budget = self._budget_used
        self._pending, self._asked = None, []
        self._add_turn(turn)
        if not isinstance(action, Search):
            self._end("answer" if isinstance(action, Answer) else "no_answer")
            return self._step("answer" if isinstance(action, Answer) else "malformed")
        if over_budget:
            self.cut("search_budget")
            return self._step("search", query=action.query)
        self._asked = asked
        failure = self._take(found)
        self._append_result()
        if failure:
            self.failed_results.append(len(self.results) - 1)
            return self._step("search", query=action.query, invalid="retriever_unavailable")
        return self._step("search", query=action.query, invalid=_invalid(asked))

    @property
    def opening(self) -> str:
        """What the prompt opened of the turn that comes next."""
        return self.opened.before(len(self.turns), self.rules.protocol.keeps_eos)

    def _add_turn(self, turn: str) -> None:
        self.segments.append(Segment("policy", self.opening + turn))
        self.turns.append(turn)

    def _to_ask(self, action: Action) -> list[_Asked]:
        """What becomes of each query of a turn: it is retrieved, or answered with a note."""
        if not isinstance(action, Search) or self._budget_used:
            return []
        rules, protocol = self.rules, self.rules.protocol
        most = protocol.max_queries
        left = None if rules.max_searches is None else rules.max_searches - self.num_searches
        asked: list[_Asked] = []
        running = 0
        written = list(zip(action.queries or ("",), action.problems or ("",), strict=True))
        for number, (query, problem) in enumerate(written):
            if number == most:  # one note for all that are too many: they may be thousands
                note = f"not searched, {len(written) - number} of {len(written)}: {_at_most(most)}"
                asked.append(_Asked(query, note, "too_many"))
                break
            if problem:
                one = _Asked(query, problem, "invalid_call")
            elif not query and not rules.reward.original_rollout:
                one = _Asked(query, NOTHING_TO_SEARCH, "empty_query")
            elif left is not None and running >= left:
                one = _Asked(query, "not searched: the search budget is used", "too_many")
            else:
                one = _Asked(query, runs=True)
                running += 1
            asked.append(one)
        return asked

    def _take(self, found: Sequence[Sequence[Passage] | RetrieverUnavailable]) -> bool:
        """Note what the queries found; return whether the retriever failed."""
        running = [number for number, one in enumerate(self._asked) if one.runs]
        assert len(found) == len(running), (len(found), len(running))
        failed = False
        for number, passages in zip(running, found, strict=True):
            one = self._asked[number]
            if isinstance(passages, RetrieverUnavailable):
                failed = True
                one = replace(one, note=f"the search failed: {passages}")
            else:
                one = replace(one, place=len(self.queries), note=NOTHING_FOUND * (not passages))
                self.queries.append(one.query)
                self.passages.append(list(passages))
            self._asked[number] = one
        return failed

    def cut(self, reason: str, turn: str = "") -> None:
        """End the episode without an answer and with reward 0.

        Args:
            reason: kept as ``finish_reason``.
            turn: what the policy had written of the turn that was cut.
        """
        if turn:
            self._add_turn(turn)
        parts = dict.fromkeys(self.rules.reward.part_names, 0.0)
        self.reward, self.finish_reason = replace(_CUT, parts=parts), reason

    def keep_passages(self, count: int) -> str:
        """Show only the ``count`` best passages of each query of the last result and return it.

        A result without passages stays as it is.
        """
        if not self.last_places:
            return self.results[-1]
        for place in self.last_places:
            self.passages[place] = self.passages[place][:count]
        self.results.pop()
        self.segments.pop()
        self._append_result()
        return self.results[-1]

    def show_instead(self, passages: Sequence[Passage]) -> str:
        """Show other passages for each query of the last result, and return it."""
        for place in self.last_places:
            self.passages[place] = list(passages)
        if passages:  # a search that found nothing no longer says so
            self._asked = [replace(o, note="") if o.place is not None else o for o in self._asked]
        return self.keep_passages(len(passages))

    @property
    def shown(self) -> int:
        """Passages that the last result shows of the query with most of them."""
        return max((len(self.passages[p]) for p in self.last_places), default=0)

    @property
    def last_places(self) -> list[int]:
        """Which of ``queries`` the last result answers."""
        return [one.place for one in self._asked if one.place is not None]

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

    def _append_result(self) -> None:
        """Append the reply to the last turn, noting which passages it shows."""
        rows = [self._shown_of(one) for one in self._asked]
        note = BUDGET_USED if self._budget_used and self.last_places else ""
        found = [Found(a.query, row, a.note) for a, row in zip(self._asked, rows, strict=True)]
        text, rows = fitted(found, lambda shown: self._written(shown, note), self.rules.max_chars)
        for one, row in zip(self._asked, rows, strict=True):
            if one.place is not None:
                self.passages[one.place] = row
        self.results.append(text)
        self.segments.append(Segment("env", text))

    def _shown_of(self, one: _Asked) -> list[Passage]:
        return [] if one.place is None else list(self.passages[one.place])

    def _written(self, found: Sequence[Found], note: str) -> str:
        return self.rules.protocol.reply(found, note, not self.rules.reward.original_rollout)

    def _end(self, reason: str) -> None:
        """Judge the response; split the reward into what pays the answer and what pays its form."""
        verdict = judged(self.rules.reward, self.segments, self.question, self.passages)
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
            "num_passages": sum(len(self.passages[place]) for place in self.last_places),
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


def _invalid(asked: Sequence[_Asked]) -> str:
    """Why a query of the turn was not retrieved, the gravest reason of all; "" if all were."""
    reasons = {one.invalid for one in asked}
    known = ("invalid_call", "empty_query", "too_many")
    return next((reason for reason in known if reason in reasons), "")


def _at_most(number: int) -> str:
    return f"at most {number} {'query' if number == 1 else 'queries'} a turn"

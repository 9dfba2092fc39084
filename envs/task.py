"""Questions, retriever and rules that all episodes of an environment share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.episode import Episode, Rules
from research_rl.envs.protocols import Opened, PromptChoice, Protocol, get_prompt, get_protocol
from research_rl.envs.rewards import RewardFunction, get_reward
from research_rl.envs.types import (
    Passage,
    Question,
    Retriever,
    RetrieverUnavailable,
    search_checked,
)

QuestionLike = Question | Mapping[str, Any]
_FAILURES = ("raise", "observe")


class Task:
    """Questions to draw from, a retriever to ask, and rules; see ReSearchEnv for the arguments.

    Nothing heavy is loaded before it is needed: the built-in world at the first reset, an index at
    the first search. Both are cached for the process, so that many environments share them.
    """

    def __init__(
        self,
        questions: str | Path | Sequence[QuestionLike] | None = None,
        index: str | Path | Retriever | None = None,
        top_k: int = 5,
        max_searches: int | None = None,
        search_cost: float = 0.0,
        max_chars: int = 32768,
        reward: str | RewardFunction | Mapping[str, Any] = "default",
        prompt: PromptChoice = "base",
        on_retriever_error: str = "raise",
        protocol: str | Protocol = "research",
    ) -> None:
        _check_numbers(top_k, max_searches, search_cost, max_chars)
        if on_retriever_error not in _FAILURES:
            raise ValueError(
                f"on_retriever_error must be one of {_FAILURES}, got {on_retriever_error!r}"
            )
        if questions is not None and index is None:
            raise ValueError(
                "index must be given with questions, got None; make one with "
                "`research index build --corpus FILE --out DIR` and pass index=DIR"
            )
        self.protocol = get_protocol(protocol)
        self.prompt = get_prompt(prompt, self.protocol)
        self.rules = Rules(
            self.prompt,
            get_reward(reward, chat=self.prompt.chat, protocol=self.protocol),
            max_searches,
            search_cost,
            max_chars,
            self.protocol,
        )
        self.top_k = top_k
        self.on_retriever_error = on_retriever_error
        # Each look at env.spec copies all arguments: they stay paths, opened at the first search.
        self._index = _checked(index)
        self._questions = None if questions is None else _load_questions(questions)
        self._retriever: Retriever | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the retriever that was loaded: a copy loads it again from its folder."""
        return {**self.__dict__, "_retriever": None}

    @property
    def questions(self) -> Sequence[Question]:
        """The questions that reset draws from; none if only an index was given."""
        if self._questions is None and self._index is None:
            return _builtin_world()[0]
        return self._questions or []

    @property
    def retriever(self) -> Retriever:
        """What answers the searches, loaded on first use."""
        if self._retriever is None:
            self._retriever = self._load_retriever()
        return self._retriever

    def _load_retriever(self) -> Retriever:
        if isinstance(self._index, Retriever):
            return self._index
        if self._index is None:
            return _builtin_world()[1]
        from research_rl.envs.retrieval.index import load_retriever

        return load_retriever(self._index)

    def episode(
        self, chosen: Any, draw: np.random.Generator, opened: Opened | None = None
    ) -> Episode:
        """Begin an episode.

        Args:
            chosen: a Question, a mapping, the number of one of ``questions``, or None to draw.
            draw: draws the question.
            opened: what a chat template opens of the response; None is what the prompt does.

        Raises:
            ValueError: the question does not exist, has no answers or does not fit max_chars.
        """
        episode = Episode(self._question(chosen, draw), self.rules, opened)
        if len(episode.prompt) > self.rules.max_chars:
            raise ValueError(
                f"max_chars must be at least {len(episode.prompt)} to hold the prompt of question "
                f"{episode.question.id!r}, got {self.rules.max_chars}"
            )
        return episode

    def _question(self, chosen: Any, draw: np.random.Generator) -> Question:
        if isinstance(chosen, (Question, Mapping)):
            return as_question(chosen)
        questions = self.questions
        if not questions:
            raise ValueError(
                'the environment has no questions of its own; give reset(options={"question": ...})'
                " or make it with questions="
            )
        if chosen is None:
            return questions[int(draw.integers(len(questions)))]
        if not isinstance(chosen, (int, np.integer)):
            raise ValueError(
                f"question must be a Question, a mapping or a number, got {chosen!r}; to ask a "
                'text, give {"question": text, "answers": [...]}'
            )
        number = int(chosen)
        if not -len(questions) <= number < len(questions):
            raise ValueError(f"question must be below {len(questions)}, got {number}")
        return questions[number]

    def search(self, queries: Sequence[str]) -> Sequence[Sequence[Passage] | RetrieverUnavailable]:
        """Return what each query finds, all in one call of the retriever.

        Raises:
            RetrieverUnavailable: unless on_retriever_error is "observe"; then it is returned for
                each of the queries.
            ValueError: the retriever breaks its contract, see ``search_checked``.
        """
        if not queries:
            return []
        try:
            return search_checked(self.retriever, queries, self.top_k)
        except RetrieverUnavailable as error:
            if self.on_retriever_error == "raise":
                raise
            return [error] * len(queries)


def as_question(item: QuestionLike) -> Question:
    """Return a question that can be judged.

    Raises:
        ValueError: it has no answers, or a mapping is not understood.
    """
    if not isinstance(item, Question):
        from research_rl.envs.questions import question_from_dict

        return as_question(question_from_dict(item))
    if not item.answers:
        raise ValueError(
            f"question {item.id!r} must have at least one answer, got none; without one no "
            "prediction can be right"
        )
    return item


def _load_questions(questions: str | Path | Sequence[QuestionLike]) -> list[Question]:
    if isinstance(questions, (str, Path)):
        from research_rl.envs.questions import read_questions

        return read_questions(str(questions))
    if not questions:
        raise ValueError("questions must hold at least one question, got an empty sequence")
    return [as_question(item) for item in questions]


def _checked(index: str | Path | Retriever | None) -> str | Retriever | None:
    """Return the index after a check that its folder exists; it is opened at the first search."""
    if index is None or isinstance(index, Retriever):
        return index
    if "://" not in str(index) and not Path(index).exists():
        raise FileNotFoundError(
            f"index must be a folder made by `research index build`, got {str(index)!r}, which is "
            f"not there; run `research index build --corpus FILE --out {index}`"
        )
    return str(index)


def _check_numbers(
    top_k: int, max_searches: int | None, search_cost: float, max_chars: int
) -> None:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if max_searches is not None and max_searches < 0:
        raise ValueError(
            f"max_searches must be 0 or more, or None for no limit, got {max_searches}"
        )
    if search_cost < 0:
        raise ValueError(f"search_cost must be 0 or more, got {search_cost}")
    if max_chars < 128:
        raise ValueError(f"max_chars must be at least 128, got {max_chars}")


def _builtin_world() -> tuple[list[Question], Retriever]:
    from research_rl.envs.synthetic import builtin_world

    return builtin_world()

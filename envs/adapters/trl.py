"""TRL's ``environment_factory``: a class whose only tool is ``search``, for tool-calling models.

The model calls the tool in its own chat format and answers in its last message. Written for
TRL 1.16, whose GRPOTrainer makes a tool of every public method but ``reset`` and ``get_reward``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from research_rl.envs.env import ReSearchEnv
from research_rl.envs.protocols import BUDGET_USED, last_boxed
from research_rl.envs.types import Question, RetrieverUnavailable

SYSTEM = (
    "Answer the user's question. Use the search tool as often as you need, one fact at a time, and "
    r"end with the answer, as short as it can be, within \boxed{}."
)

_THOUGHT = "."  # some protocols ask for one


# No ReSearchEnv with another name: TRL would make tools of its step, close and render as well.
class SearchTool:
    r"""One episode of ReSearch-v0 behind a tool call.

    Args:
        kwargs: arguments of ReSearch-v0 (``index``, ``top_k``, ``max_searches``, ``reward`` ...).
            The protocol is how the rewards read what was called and answered; what the model reads
            and writes is its own chat format, whatever the protocol.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._env = ReSearchEnv(**kwargs)
        self._failure: RetrieverUnavailable | None = None

    def reset(
        self,
        question: str | None = None,
        golden_answers: Sequence[str] = (),
        id: str | int | None = None,
        metadata: str | Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Begin an episode with the question of a dataset row; see :func:`tool_rows`.

        Args:
            question: its text. The rollouts of a group must be asked the same.
            golden_answers: what counts as right.
            id: of the question; one is made from its text if it is no text and no whole number.
            metadata: what some rewards read besides, such as ``unanswerable`` and ``gold_ids``; as
                JSON text or a mapping. Anything else is a column of your own and not read.

        Raises:
            ValueError: the row has no question, or its metadata are no JSON object.
        """
        if question is None:
            raise ValueError(
                "each row of the dataset must have the columns question and golden_answers, "
                "got none; make it with Dataset.from_list(tool_rows(questions))"
            )
        self._failure = None
        asked: dict[str, Any] = {"question": question, "golden_answers": list(golden_answers)}
        if isinstance(id, str | int):  # else a column of the user's own, as is other metadata
            asked["id"] = id
        if isinstance(metadata, Mapping) or str(metadata).startswith("{"):
            asked["metadata"] = metadata
        self._env.reset(options={"question": asked})

    def search(self, query: str) -> str:
        """
        Search an encyclopedia and return the passages that fit best.

        Args:
            query: What to look for, in a few words.

        Returns:
            The passages found.
        """
        episode = self._env.episode
        limit = episode.rules.max_searches
        if limit is not None and episode.num_searches >= limit:
            return BUDGET_USED
        try:
            found = self._env.step(self._turn(self._env.protocol.search, str(query)))[0]
        except RetrieverUnavailable as error:
            self._failure = error  # the trainer makes text of it: _judge raises it again
            raise
        return self._env.protocol.content(found)

    def _turn(self, write: Callable[..., str], text: str) -> str:
        """Write a turn of good form: the chat template decides the model's own."""
        escaped = self._env.protocol.escape(text)
        return write(escaped, thought=_THOUGHT, opened=self._env.episode.opening)

    def _judge(self, message: str) -> float:
        """Return what the last message is worth.

        Raises:
            RetrieverUnavailable: a search of this episode failed.
        """
        if self._failure is not None:
            raise self._failure
        boxed = last_boxed(message)
        self._env.step("" if boxed is None else self._turn(self._env.protocol.answer, boxed))
        assert self._env.episode.reward is not None
        return self._env.episode.reward.value


def search_tool_factory(**kwargs: Any) -> partial[SearchTool]:
    """Return an ``environment_factory``; the arguments are those of ReSearch-v0."""
    return partial(SearchTool, **kwargs)


def search_tool_reward(
    completions: Sequence[Sequence[Mapping[str, Any]]],
    environments: Sequence[SearchTool],
    **_: Any,
) -> list[float]:
    r"""Return the environment's reward of each rollout; one of GRPOTrainer's ``reward_funcs``.

    The last message is the answer and must hold a ``\boxed{}``; a rollout that ends in a tool call
    is worth 0. The chat template decides the form, so nothing else of it is judged.

    Raises:
        RetrieverUnavailable: a search failed during a rollout.
    """
    return [
        tool._judge(_answer_of(messages))
        for messages, tool in zip(completions, environments, strict=True)
    ]


def tool_rows(questions: Iterable[Question], system: str = SYSTEM) -> list[dict[str, Any]]:
    """Return rows of the trainer's dataset: ``prompt`` and what :meth:`SearchTool.reset` takes.

    Metadata are JSON text: a Dataset would give every row the fields of all others.

    Args:
        questions: what is asked.
        system: what the model is told in front of each.
    """
    return [
        {
            "prompt": [
                {"role": "system", "content": system},
                {"role": "user", "content": q.text},
            ],
            "question": q.text,
            "golden_answers": list(q.answers),
            "id": q.id,
            "metadata": json.dumps(dict(q.metadata), default=str),
        }
        for q in questions
    ]


def _answer_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last message, empty where that is no answer."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or last.get("tool_calls"):
        return ""
    content = last.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)

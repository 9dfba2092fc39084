"""ReSearch-v0 as an OpenEnv server: any OpenEnv client can play it over a web socket.

Every session has an episode of its own; questions and index are shared. Written for openenv 0.10.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from research_rl.envs.adapters.missing import missing_library
from research_rl.envs.env import ReSearchEnv
from research_rl.envs.protocols import RESEARCH
from research_rl.envs.types import Question

try:
    from openenv.core.env_server import (
        Action,
        Environment,
        Observation,
        State,
        create_fastapi_app,
    )
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("openenv"):
        raise
    raise missing_library("openenv", "pip install -e '.[openenv]'") from error

SPLIT = "questions"
"""The one split of OpenEnv's task interface: the environment's questions."""


class TurnAction(Action):  # type: ignore[misc]
    """A turn of the policy."""

    text: str


class TextObservation(Observation):  # type: ignore[misc]
    """What to append to the transcript: the prompt, a result, or nothing at the end.

    ``metadata`` is the info of ReSearch-v0, with ``truncated`` where the episode is over.
    """

    text: str
    protocol: str = RESEARCH.name
    """How turns and replies are written, see ``get_protocol``."""


class EpisodeState(State):  # type: ignore[misc]
    """The episode as it stands, without the answer."""

    question: str = ""
    num_searches: int = 0


class ReSearchServer(Environment):  # type: ignore[misc]
    """One session's ReSearch-v0.

    Args:
        kwargs: arguments of ReSearch-v0.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self._env = ReSearchEnv(**kwargs)
        self._state = EpisodeState()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str | None = None,
        index: int | None = None,
        question: dict[str, Any] | None = None,
        **_: Any,
    ) -> TextObservation:
        """Begin an episode.

        Args:
            seed: draws the question; equal seeds ask equal questions.
            episode_id: a name for it.
            split: of OpenEnv's task interface; only ``questions``.
            index: number of a question, instead of a draw.
            question: a question in the FlashRAG layout, instead of a draw.

        Raises:
            ValueError: there is no such split or question.
        """
        self._check_split(split)
        chosen = question if question is not None else index
        text, info = self._env.reset(
            seed=seed, options=None if chosen is None else {"question": chosen}
        )
        self._state = EpisodeState(
            episode_id=episode_id or str(uuid4()), step_count=0, question=info["question"]
        )
        return self._told(text, done=False, reward=None, metadata=info)

    def step(self, action: TurnAction, timeout_s: float | None = None, **_: Any) -> TextObservation:
        """Play a turn.

        Raises:
            RetrieverUnavailable: the search failed; the same step may be tried again.
        """
        text, reward, terminated, truncated, info = self._env.step(action.text)
        self._state.step_count += 1
        self._state.num_searches = info["num_searches"]
        return self._told(
            text,
            done=terminated or truncated,
            reward=reward,
            metadata={**info, "truncated": truncated},
        )

    def _told(self, text: str, **more: Any) -> TextObservation:
        return TextObservation(text=text, protocol=self._env.protocol.name, **more)

    @property
    def state(self) -> EpisodeState:
        """The episode as it stands."""
        return self._state

    def list_splits(self) -> list[str]:
        """Return the names of the splits."""
        return [SPLIT]

    def num_tasks(self, split: str) -> int:
        """Return the number of questions."""
        self._check_split(split)
        return len(self._env.task.questions)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Return a question without its answers.

        Raises:
            IndexError: there are fewer.
        """
        self._check_split(split)
        return _task(self._env.task.questions[index], index)

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """Return all questions without their answers."""
        self._check_split(split)
        return [_task(q, i) for i, q in enumerate(self._env.task.questions)]

    @staticmethod
    def _check_split(split: str | None) -> None:
        if split not in (None, SPLIT):
            raise ValueError(f"split must be {SPLIT!r}, got {split!r}")


def research_app(max_concurrent_envs: int = 64, **kwargs: Any) -> Any:
    """Return the FastAPI application; run it with uvicorn.

    Args:
        max_concurrent_envs: sessions at a time.
        kwargs: arguments of ReSearch-v0.
    """
    return create_fastapi_app(
        lambda: ReSearchServer(**kwargs),
        TurnAction,
        TextObservation,
        max_concurrent_envs=max_concurrent_envs,
        env_name="research",
        state_cls=EpisodeState,
    )


def _task(question: Question, index: int) -> dict[str, Any]:
    return {"id": question.id, "index": index, "question": question.text}

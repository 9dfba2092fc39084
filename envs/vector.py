"""Vectorised ReSearch-v0: many questions at once, one retrieval call a step for all who search."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from itertools import chain, islice
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from research_rl.envs.env import (
    ReSearchEnv,
    check_options,
    check_render_mode,
    opened_option,
)
from research_rl.envs.episode import Episode, Transition
from research_rl.envs.protocols import Opened, Prompt, Protocol
from research_rl.envs.render import render_ansi
from research_rl.envs.spaces import UnicodeText
from research_rl.envs.task import Task

Seeds = int | Sequence[int | None] | None
Stepped = tuple[
    tuple[str, ...], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
]


class ReSearchVectorEnv(VectorEnv[tuple[str, ...], Sequence[str | None], NDArray[Any]]):
    """N episodes of ReSearch-v0 that share one search a step.

    Agrees step for step, infos included, with SyncVectorEnv and AsyncVectorEnv over ReSearchEnv,
    and adds to them: an action of None leaves its row as it is; under ``DISABLED`` autoreset a
    finished row idles with ``("", 0, False, False)``; rows can be given their questions; the
    number of rows can change.

    Args:
        num_envs: number of rows.
        autoreset_mode: what a finished row does: begin anew at its next step (``NEXT_STEP``), in
            the same step (``SAME_STEP``) or wait for reset (``DISABLED``).
        max_episode_steps: turns after which an episode is truncated.
        render_mode: None or ``ansi``.
        **kwargs: the arguments of ReSearchEnv.
    """

    metadata: dict[str, Any] = ReSearchEnv.metadata

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_render_mode(render_mode)
        self.task = Task(**kwargs)
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(
                f"max_episode_steps must be at least 1, got {max_episode_steps}; None is no limit"
            )
        # gym.make_vec passes this limit on as an argument and adds no TimeLimit wrapper.
        self.max_episode_steps = max_episode_steps
        self.metadata = {
            **ReSearchEnv.metadata,
            "stop_strings": self.task.protocol.stops,
            "autoreset_mode": self.autoreset_mode,
        }
        self._opened: Opened | None = None
        self.single_observation_space = UnicodeText(self.task.rules.max_chars)
        self.single_action_space = UnicodeText(self.task.rules.max_chars)
        self.resize(num_envs)

    @property
    def prompt(self) -> Prompt:
        """The text in front of each response."""
        return self.task.prompt

    @property
    def protocol(self) -> Protocol:
        """How turns and replies are written."""
        return self.task.protocol

    @property
    def episodes(self) -> list[Episode]:
        """The episodes being played, one a row.

        Raises:
            gymnasium.error.ResetNeeded: not every row has been reset.
        """
        episodes = [episode for episode in self._episodes if episode is not None]
        if len(episodes) < self.num_envs:
            raise gym.error.ResetNeeded("call reset() for every row before step() or render()")
        return episodes

    def at(self, iteration: int | None) -> None:
        """Tell the reward the iteration of training; None is outside of training."""
        self.task.rules.reward.at(iteration)

    def resize(self, num_envs: int) -> None:
        """Set the number of rows; all begin anew at the next reset, which must follow."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episodes: list[Episode | None] = [None] * num_envs
        self._draws: list[np.random.Generator | None] = [None] * num_envs
        self._observations = [""] * num_envs
        self._steps = np.zeros(num_envs, np.int64)
        self._done = np.zeros(num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: Seeds = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Begin episodes.

        Args:
            seed: one for each row, or the first row's, counted up from there. Equal seeds give
                equal questions.
            options: ``questions`` (one for each row: Question, mapping or number), ``question``
                (one for all), ``reset_mask`` (bool array (N,): which rows begin anew), ``opened``
                (for all rows, until another is given, see ReSearchEnv.reset).
        """
        check_options(options, known=("questions", "question", "reset_mask", "opened"))
        options = options or {}
        if "opened" in options:
            self._opened = opened_option(options["opened"])
        mask = self._mask(options.get("reset_mask"))
        questions = options.get("questions", [options.get("question")] * self.num_envs)
        self._check_length("options['questions']", questions)
        for row, row_seed in enumerate(self._seeds(seed)):
            if mask[row] and row_seed is not None:
                self._draws[row] = seeding.np_random(row_seed)[0]
        begun = {
            row: self._new_episode(row, questions[row]) for row in map(int, np.flatnonzero(mask))
        }
        infos: dict[str, Any] = {}
        for row, episode in begun.items():
            infos = self._add_info(infos, self._place(row, episode), row)
        return tuple(self._observations), infos

    def step(self, actions: Sequence[str | None]) -> Stepped:
        """Play a turn in each row whose action is not None, with one search for all who ask.

        Raises:
            gymnasium.error.ResetNeeded: a row has not been reset.
            RetrieverUnavailable: the search failed; no row has changed, the step may be repeated.
        """
        episodes = self.episodes
        self._check_length("actions", actions)
        queries = {
            row: episodes[row].begin(str(action))
            for row, action in enumerate(actions)
            if action is not None and not self._done[row]
        }
        answers = iter(self.task.search(list(chain.from_iterable(queries.values()))))
        found = {row: list(islice(answers, len(asked))) for row, asked in queries.items()}
        observations, rewards = [""] * self.num_envs, np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), np.bool_)
        infos: dict[str, Any] = {}
        for row, action in enumerate(actions):
            if action is None:
                continue
            if self._done[row]:
                infos = self._wake(row, infos)
                observations[row] = self._observations[row] if not self._done[row] else ""
                continue
            step = self._limit(row, episodes[row], episodes[row].finish(found[row]))
            rewards[row], terminated[row], truncated[row] = step[1:4]
            self._observations[row] = step.observation
            self._done[row] = step.terminated or step.truncated
            infos = self._finish_row(row, step, infos)
            observations[row] = self._observations[row]
        return tuple(observations), rewards, terminated, truncated, infos

    def fork(self, rows: Sequence[int]) -> ReSearchVectorEnv:
        """Return another environment whose row ``i`` is an independent copy of row ``rows[i]``.

        Each row goes on from where it stands, with the same draws to come; questions, retriever
        and rules are shared. ``fork([3] * 8)`` are eight ways to go on from row 3.

        Raises:
            ValueError: no row is named, or one that is not there.
        """
        wrong = [row for row in rows if not 0 <= row < self.num_envs]
        if wrong or not rows:
            raise ValueError(
                f"rows must name at least one row from 0 to {self.num_envs - 1}, got {list(rows)}"
            )
        twin = copy(self)
        twin.resize(len(rows))
        for new, row in enumerate(rows):
            episode = self._episodes[row]
            twin._episodes[new] = None if episode is None else episode.fork()
            twin._draws[new] = deepcopy(self._draws[row])
            twin._observations[new] = self._observations[row]
            twin._steps[new], twin._done[new] = self._steps[row], self._done[row]
        return twin

    def render(self) -> tuple[str, ...] | None:
        """Return each row's episode so far in colour, None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(
            render_ansi(e.prompt, e.segments, self.protocol, e.opened.first) for e in self.episodes
        )

    def _wake(self, row: int, infos: dict[str, Any]) -> dict[str, Any]:
        """Begin a finished row anew under NEXT_STEP; leave it idle otherwise."""
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            return infos
        return self._add_info(infos, self._place(row, self._new_episode(row)), row)

    def _finish_row(self, row: int, step: Transition, infos: dict[str, Any]) -> dict[str, Any]:
        """Add the row's info; under SAME_STEP a finished row begins anew here."""
        if not self._done[row] or self.autoreset_mode is not AutoresetMode.SAME_STEP:
            return self._add_info(infos, step.info, row)
        final = {"final_obs": step.observation, "final_info": step.info}
        infos = self._add_info(infos, final, row)
        return self._add_info(infos, self._place(row, self._new_episode(row)), row)

    def _limit(self, row: int, episode: Episode, step: Transition) -> Transition:
        """Truncate at max_episode_steps, as gymnasium's TimeLimit does."""
        self._steps[row] += 1
        if self.max_episode_steps is None or self._steps[row] < self.max_episode_steps:
            return step
        if not (step.terminated or step.truncated):
            episode.cut("turn_budget")
        return step._replace(truncated=True)

    def _new_episode(self, row: int, question: Any = None) -> Episode:
        draw = self._draws[row]
        if draw is None:
            draw = self._draws[row] = seeding.np_random()[0]
        return self.task.episode(question, draw, self._opened)

    def _place(self, row: int, episode: Episode) -> dict[str, Any]:
        """Put a new episode into its row and return its info."""
        self._episodes[row] = episode
        self._observations[row] = episode.prompt
        self._steps[row], self._done[row] = 0, False
        return episode.reset_info()

    def _seeds(self, seed: Seeds) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + row for row in range(self.num_envs)]
        self._check_length("seed", seed)
        return [None if s is None else int(s) for s in seed]

    def _mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        rows: NDArray[np.bool_] = np.asarray(mask)
        if rows.shape != (self.num_envs,) or rows.dtype != np.bool_ or not rows.any():
            raise ValueError(
                f"options['reset_mask'] must be a bool array of shape ({self.num_envs},) with at "
                f"least one True, got {mask!r}"
            )
        return rows

    def _check_length(self, name: str, rows: Sequence[Any]) -> None:
        if len(rows) != self.num_envs:
            raise ValueError(
                f"{name} must have one entry for each of {self.num_envs} rows, got {len(rows)}; "
                f"call resize({len(rows)}) before reset() to change the number of rows"
            )

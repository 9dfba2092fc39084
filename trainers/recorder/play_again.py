"""Recorded rollouts, played again from their turns or from their seeds.

The turns go through the environment, which must give the same passages and rewards. The seeds are
sampled from, which must give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research_rl.agents import Engine, SamplingParams, collect_rollouts
from research_rl.agents.policy import LMPolicy
from research_rl.envs import Question, ReSearchVectorEnv
from research_rl.envs.protocols import Opened, Protocol, Search
from research_rl.trainers.checkpoint import iteration_of, load_weights, policy_config, why_torn
from research_rl.trainers.recorder.records import Numbered, Record, record_of
from research_rl.trainers.settings import (
    EnvConfig,
    OneLineParser,
    careful,
    distrust,
    read_run_config,
)


@dataclass
class RunSettings:
    """The part of a run's config that decides its rollouts.

    Args:
        policy: the language model.
        env: the environment.
        sampling: how rollouts are sampled.
        engine: makes the engine that samples.
    """

    policy: Any
    env: EnvConfig
    sampling: SamplingParams
    engine: Callable[[LMPolicy], Engine]

    @classmethod
    def read(cls, run: Path) -> RunSettings:
        """Read the config.yaml of a run, with the paths in its folder as they are now.

        Raises:
            FileNotFoundError: there is none.
            TrustError: it asks for what only the command line grants.
        """
        path = run / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"the run must have its config.yaml, got none in {run}")
        model = read_run_config(path, run)["model"]
        with careful(()):
            return cls._made(path, run, model)

    @classmethod
    def _made(cls, path: Path, run: Path, model: Any) -> RunSettings:
        distrust(path)
        parser = OneLineParser(prog="research replay")
        parser.add_argument("--env", type=EnvConfig)
        parser.add_argument("--sampling", type=SamplingParams)
        parser.add_argument("--engine", type=Callable[[LMPolicy], Engine])
        sections = {name: model[name] for name in ("env", "sampling", "engine")}
        made = parser.instantiate(parser.parse_object(sections))
        return cls(policy_config(path, run), made.env, made.sampling, made.engine)


def weights_of(run: Path, iterations: int) -> Path | None:
    """Return an undamaged checkpoint that has learned from so many iterations, None without one."""
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        if path.is_file() and why_torn(path) is None and iteration_of(path) == iterations:
            return path
    return None


def played_again(chosen: Numbered, env: ReSearchVectorEnv) -> Numbered:
    """Return the records with the passages and rewards that their turns get now."""
    env.resize(len(chosen))
    env.reset(options={"questions": [_question(r) for _, r in chosen], "opened": _opened(chosen)})
    episodes = env.episodes
    for turn in range(max(len(record.turns) for _, record in chosen)):
        actions = [_action(record, turn, env.protocol) for _, record in chosen]
        env.step([None if e.done else a for e, a in zip(episodes, actions, strict=True)])
        for episode, (_, record), action in zip(episodes, chosen, actions, strict=True):
            places = episode.last_places
            if action is None or not places or max(places) >= len(record.passage_ids):
                continue
            shown = max(len(record.passage_ids[place]) for place in places)
            if shown < episode.shown:
                episode.keep_passages(shown)  # more passages would have been over the token limit
    again = []
    for episode, (number, record) in zip(episodes, chosen, strict=True):
        if not episode.done:
            episode.cut(record.finish_reason)
        assert episode.reward is not None
        now = {name: getattr(episode.reward, name) for name in record.reward}
        passages = [[p.id for p in found] for found in episode.passages]
        changed = {"queries": list(episode.queries), "passage_ids": passages, "reward": now}
        changed["finish_reason"] = episode.finish_reason
        again.append((number, Record(**{**vars(record), **changed})))
    return again


def _opened(chosen: Numbered) -> Opened | None:
    """What the prompt opened, the same in all rollouts of an iteration."""
    opened = next((record.opened for _, record in chosen if record.opened is not None), None)
    return None if opened is None else Opened(*opened)


def _action(record: Record, turn: int, protocol: Protocol) -> str | None:
    """The text of a turn; None where there is none, or where the tokens ran out in it."""
    if turn >= len(record.turns):
        return None
    text = record.turns[turn]
    cut_off = record.finish_reason == "length" and not isinstance(protocol.parse(text), Search)
    return None if cut_off else text


def _question(record: Record) -> Question:
    return Question(**{**record.question, "answers": tuple(record.question["answers"])})


def sampled_again(
    chosen: Numbered, settings: RunSettings, env: Any, checkpoint: Path | None
) -> Numbered:
    """Return the rollouts that the weights of a checkpoint sample from the recorded seeds.

    Args:
        chosen: recorded rollouts.
        settings: of the run.
        env: its environment.
        checkpoint: None is the policy before training.
    """
    policy = LMPolicy.from_config(settings.policy)
    if checkpoint is not None:
        load_weights(policy, checkpoint, settings.policy)
    questions = [_question(record) for _, record in chosen]
    seeds = [record.seed for _, record in chosen]
    if any(seed is None for seed in seeds):
        raise ValueError("every record must have its seed to be sampled again, got one without")
    rollouts = collect_rollouts(
        questions,
        env,
        policy,
        settings.engine(policy),
        settings.sampling,
        [seed for seed in seeds if seed is not None],
    )
    return [
        (number, record_of(rollout)) for (number, _), rollout in zip(chosen, rollouts, strict=True)
    ]

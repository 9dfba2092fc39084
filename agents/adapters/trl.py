"""TRL's ``rollout_func``: GRPOTrainer learns from rollouts of this environment, token for token.

The trainer gives prompts, already repeated for each group, and gets back the ids that were sampled
with the results between them; ``env_mask`` is 0 on the latter. Written for TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

import research_rl.envs  # noqa: F401  registers ReSearch-v0
from research_rl.agents.engines import engine_for
from research_rl.agents.policy import LMPolicy
from research_rl.agents.rollout import collect_rollouts, vector_rows
from research_rl.agents.types import Engine, Rollout, SamplingParams
from research_rl.envs import Question

_UNSUPPORTED: Mapping[str, Any] = {"min_p": None, "repetition_penalty": 1.0}
"""Settings of GRPOConfig that the engine lacks, and what leaves them off."""


class LogMetric(Protocol):
    """What GRPOTrainer hands to reward functions to log a number."""

    def __call__(self, name: str, value: float) -> None:
        """Log ``value``."""


class TRLRollouts:
    """Plays the questions that GRPOTrainer asks; pass it as ``rollout_func``.

    The trainer's dataset must hold the questions' texts in its column ``prompt``, see
    :meth:`rows`: the environment's prompt and the chat template are put around them here. Sampling
    follows GRPOConfig: ``temperature``, ``top_p``, ``top_k``, and ``max_completion_length``, which
    counts results too.

    Args:
        questions: what may be asked. Texts that occur twice share their answers.
        env: ``gym.make_vec("ReSearch-v0", 1, autoreset_mode="Disabled", ...)``; the built-in world
            if None.
        max_result_tokens: cap of a result, see SamplingParams.
        max_slots: sequences sampled together, see ``engine_for``.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        env: gym.vector.VectorEnv[Any, Any, Any] | None = None,
        max_result_tokens: int | None = None,
        max_slots: int = 256,
    ) -> None:
        self._questions = _by_text(questions)
        self._env = env or gym.make_vec("ReSearch-v0", 1, autoreset_mode="Disabled")
        vector_rows(self._env)  # refuses another environment before the model is loaded
        self._max_result_tokens, self._max_slots = max_result_tokens, max_slots
        self._sampler: tuple[LMPolicy, Engine] | None = None
        self._calls = 0

    def rows(self) -> list[dict[str, str]]:
        """The rows of the trainer's dataset: ``Dataset.from_list(rollouts.rows())``."""
        return [{"prompt": text} for text in self._questions]

    def __call__(self, prompts: Seq[Any], trainer: Any) -> dict[str, Any]:
        """Play one episode a prompt.

        Args:
            prompts: texts of questions, as this process got them.
            trainer: the GRPOTrainer.

        Returns:
            ``prompt_ids``, ``completion_ids`` with their end of sequence, ``logprobs`` (0 on
            results), ``env_mask`` (1 where the policy wrote), and for reward functions
            ``research_reward``, ``research_f1``, ``research_em`` and ``research_searches``.

        Raises:
            ValueError: a prompt is no question's text, or the trainer is set to sample in a way
                that the engine cannot.
            RetrieverUnavailable: a search failed.
        """
        asked = [self._question(prompt) for prompt in prompts]
        params = sampling_params(trainer, self._max_result_tokens)
        policy, engine = self._policy_of(trainer)
        seeds = self._seeds(trainer, len(asked))
        return columns(collect_rollouts(asked, self._env, policy, engine, params, seeds))

    def _question(self, prompt: Any) -> Question:
        if not isinstance(prompt, str) or prompt not in self._questions:
            raise ValueError(
                "each prompt of the trainer's dataset must be the text of one of the questions, "
                f"got {prompt!r}; make it with Dataset.from_list(rollouts.rows())"
            )
        return self._questions[prompt]

    def _policy_of(self, trainer: Any) -> tuple[LMPolicy, Engine]:
        """The trainer's model as a policy, wrapped anew only where it is another object."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self._sampler is None or self._sampler[0].model is not model:
            processor = trainer.processing_class
            policy = LMPolicy(model, getattr(processor, "tokenizer", processor))
            self._sampler = policy, engine_for(policy, self._max_slots)
        return self._sampler

    def _seeds(self, trainer: Any, count: int) -> list[int]:
        """Fresh seeds for each call, step and process; the processes may share a group."""
        place = (trainer.args.seed, trainer.state.global_step, self._calls)
        self._calls += 1
        source = np.random.default_rng((*place, trainer.accelerator.process_index))
        return [int(seed) for seed in source.integers(1 << 62, size=count)]


def research_reward(
    research_reward: Seq[float],
    research_f1: Seq[float],
    research_em: Seq[float],
    research_searches: Seq[int],
    log_metric: LogMetric | None = None,
    **_: Any,
) -> list[float]:
    """Return what the environment paid; one of GRPOTrainer's ``reward_funcs``."""
    if log_metric is not None:
        log_metric("research/f1", float(np.mean(research_f1)))
        log_metric("research/em", float(np.mean(research_em)))
        log_metric("research/searches", float(np.mean(research_searches)))
    return [float(value) for value in research_reward]


def sampling_params(trainer: Any, max_result_tokens: int | None = None) -> SamplingParams:
    """Return how a GRPOTrainer is set to sample.

    Raises:
        ValueError: it asks for something that the engine cannot do.
    """
    for name, off in _UNSUPPORTED.items():
        if getattr(trainer, name) not in (off, None):
            raise ValueError(
                f"{name} must be {off} with this rollout_func, got {getattr(trainer, name)}; "
                "use temperature, top_p and top_k"
            )
    if trainer.args.generation_kwargs:
        raise ValueError(
            "generation_kwargs must be empty with this rollout_func, got "
            f"{trainer.args.generation_kwargs}; use temperature, top_p and top_k"
        )
    return SamplingParams(
        max_response_tokens=trainer.max_completion_length,
        max_result_tokens=max_result_tokens,
        temperature=trainer.temperature,
        top_p=trainer.top_p,
        top_k=trainer.top_k or 0,
    )


def columns(rollouts: Seq[Rollout]) -> dict[str, Any]:
    """Return rollouts as the columns that ``rollout_func`` returns."""
    sequences = [rollout.sequence for rollout in rollouts]
    return {
        "prompt_ids": [s.prompt_ids for s in sequences],
        "completion_ids": [s.response_ids for s in sequences],
        "logprobs": [s.logprobs for s in sequences],
        "env_mask": [[int(mine) for mine in s.loss_mask] for s in sequences],
        "research_reward": [float(r.reward.value) for r in rollouts],
        "research_f1": [float(r.reward.f1) for r in rollouts],
        "research_em": [float(r.reward.em) for r in rollouts],
        "research_searches": [len(r.queries) for r in rollouts],
    }


def _by_text(questions: Iterable[Question]) -> dict[str, Question]:
    """Questions by their texts; one that comes again adds its answers."""
    found: dict[str, Question] = {}
    for q in questions:
        first = found.get(q.text, q)
        answers = tuple(dict.fromkeys([*first.answers, *q.answers]))
        found[q.text] = Question(first.id, q.text, answers, first.metadata)
    if not found:
        raise ValueError("questions must hold at least one question, got none")
    return found

"""Sections of a config as dataclasses: ``model.env``, ``model.updates`` and validation sampling.

Each field is an option of the command line: ``--model.updates.group_size 8``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

import research_rl.envs  # noqa: F401  (registers ReSearch-v0)
from research_rl.agents import SamplingParams, chosen_dtype
from research_rl.envs import Retriever
from research_rl.envs.protocols import Protocol
from research_rl.envs.retrieval.index import load_retriever
from research_rl.envs.rewards import RewardFunction
from research_rl.envs.rewards.terms import class_paths_in
from research_rl.trainers.settings.trust import refuse_class


@dataclass
class PromptParts:
    """A prompt in parts: the messages of a chat, or what the documents are about.

    A class of its own, because a parser that may also take any mapping reads the text
    ``Question: {prompt}`` as one.

    Args:
        system: the system message; None for none.
        user: the user's message with {prompt} where the question goes; None is the question alone.
        about: in place of both: what the documents are, e.g. ``the manuals of Acme``; the rules are
            then told in words that fit any corpus.
        chat: with about: false is one text, for base models.
        begins: what the response begins with; None is what the protocol says.
        tools: false leaves it to the messages to tell of the tool of a protocol of tool calls.
    """

    system: str | None = None
    user: str | None = None
    about: str | None = None
    chat: bool | None = None
    begins: str | None = None
    tools: bool | None = None


@dataclass
class TermsConfig:
    """A reward that is a sum of terms; the arguments of RewardTerms.

    Args:
        terms: by name: a weight, options with a weight among them, or {class_path, init_args}.
        low: least that is paid.
        high: most that is paid; None is no limit.
        gated: a response of wrong form earns nothing.
    """

    terms: dict[str, Any]
    low: float = 0.0
    high: float | None = None
    gated: bool = True


@dataclass
class EnvConfig:
    """Which environment the policy plays; the arguments are those of ``gym.make_vec``.

    Args:
        id: a registered vector environment.
        index: folder of a search index, or a retriever; None is the built-in world.
        top_k: passages that a search returns.
        max_searches: searches that an episode may make; None is no limit.
        search_cost: taken off a positive answer reward for each search.
        reward: default, paper, paper-code, em, cover, a sum of {terms}, or a reward function.
        prompt: base, instruct, a text that holds {prompt}, a chat as {system, user}, {about} for
            a corpus of your own, or the path of a file with one of these.
        on_retriever_error: raise, or observe (the policy reads that the search failed).
        max_chars: longest observation and action in characters.
        protocol: how turns and replies are written: research, search_r1, zero_search, autorefine,
            r1_searcher, o2, hermes, recall, qwen3_coder, llama3, or a Protocol by class_path.
    """

    id: str = "ReSearch-v0"
    index: str | Retriever | None = None
    top_k: int = 5
    max_searches: int | None = None
    search_cost: float = 0.0
    reward: str | TermsConfig | RewardFunction = "default"
    prompt: str | PromptParts = "base"
    on_retriever_error: str = "raise"
    max_chars: int = 32768
    protocol: str | Protocol = "research"

    def make(self, num_envs: int = 1) -> VectorEnv[Any, Any, Any]:
        """Make the vector environment; finished rows idle until the next reset.

        An index is opened here, so that a wrong one ends a run before its first rollout.

        Raises:
            TrustError: a config that came with a folder names an environment, or a term of the
                reward, of another package.
        """
        if ":" in self.id:  # gymnasium imports what stands before the colon
            refuse_class(self.id, "model.env.id")
        if isinstance(self.reward, TermsConfig):
            for name, path in class_paths_in(self.reward.terms).items():
                refuse_class(path, f"model.env.reward.terms.{name}")
        if isinstance(self.index, str):
            load_retriever(self.index)
        return gym.make_vec(
            self.id,
            num_envs=num_envs,
            autoreset_mode="Disabled",
            index=self.index,
            top_k=self.top_k,
            max_searches=self.max_searches,
            search_cost=self.search_cost,
            reward=vars(self.reward) if isinstance(self.reward, TermsConfig) else self.reward,
            prompt=asdict(self.prompt) if isinstance(self.prompt, PromptParts) else self.prompt,
            on_retriever_error=self.on_retriever_error,
            max_chars=self.max_chars,
            protocol=self.protocol,
        )


@dataclass
class ValidationSampling:
    """How held-out questions are answered; what is None is as in training.

    Args:
        temperature: 0 is greedy.
        max_response_tokens: tokens of a response, results included.
        max_result_tokens: tokens of a search result.
        top_p: as in SamplingParams.
        top_k: as in SamplingParams.
        stop: texts that end a turn.
        min_new_tokens: as in SamplingParams.
    """

    temperature: float = 0.0
    max_response_tokens: int | None = None
    max_result_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] | None = None
    min_new_tokens: int | None = None

    def over(self, sampling: SamplingParams) -> SamplingParams:
        """Return the settings of training with these on top."""
        set_here = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(sampling, **{k: v for k, v in set_here.items() if v is not None})


@dataclass
class Updates:
    """How rollouts are collected for, and used by, one iteration.

    Args:
        group_size: rollouts of each question.
        num_epochs: passes over the rollouts of an iteration.
        num_minibatches: optimizer steps in a pass.
        micro_batch_size: rollouts in one forward and backward pass; costs memory and time, never
            changes the gradient. None is no limit.
        micro_batch_tokens: tokens in one forward and backward pass, the prompt of a group once;
            None is no limit.
        max_grad_norm: the gradient is scaled down to this norm; None leaves it.
        mask_truncated: leave rollouts that ran out of tokens out of the loss; their reward of 0
            still counts for their group.
        resample_rounds: how often groups whose rewards are all equal are replaced by those of
            other training questions, as in DAPO; 0 keeps them.
        compute_dtype: bfloat16 lets learner and reference compute with copies of float32 weights,
            made once an update; float16 too, with a scaled loss, and is nearer to float32 where a
            model's logits are large; auto takes bfloat16 where the machine is faster for it; None
            computes in the weights' own dtype, or as trainer.precision says.
        park_optimizer: keep the optimizer's states in main memory while rollouts are sampled, to
            make room for their cache; not with weights in shards.
        async_rollouts: 1 samples the next iteration's rollouts while this one is learned from, with
            the weights that it began with; 0 samples with the newest weights, in turn.
        downsample_to: rollouts of each group that are learned from, those whose rewards differ
            most, as in PODS; the others are sampled and cost no update. None learns from all.
        max_staleness: rollouts with a turn of weights that are older than so many iterations are
            left out of the loss; None keeps them all.
    """

    group_size: int = 5
    num_epochs: int = 1
    num_minibatches: int = 1
    micro_batch_size: int | None = None
    micro_batch_tokens: int | None = 8192
    max_grad_norm: float | None = 1.0
    mask_truncated: bool = False
    resample_rounds: int = 0
    compute_dtype: Literal["bfloat16", "float16", "auto"] | None = None
    park_optimizer: bool = False
    async_rollouts: Literal[0, 1] = 0
    downsample_to: int | None = None
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        names = ("group_size", "num_epochs", "num_minibatches")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.resample_rounds < 0:
            raise ValueError(f"resample_rounds must be at least 0, got {self.resample_rounds}")
        if self.async_rollouts not in (0, 1):
            raise ValueError(f"async_rollouts must be 0 or 1, got {self.async_rollouts}")
        if self.downsample_to is not None and not 2 <= self.downsample_to <= self.group_size:
            raise ValueError(
                f"downsample_to must be null or from 2 to group_size {self.group_size}, got "
                f"{self.downsample_to}; it is how many rollouts of a group are learned from"
            )
        if self.max_staleness is not None and self.max_staleness < self.async_rollouts:
            raise ValueError(
                f"max_staleness must be null or at least async_rollouts {self.async_rollouts}, "
                f"got {self.max_staleness}; else nothing is ever learned from"
            )
        for name in ("micro_batch_size", "micro_batch_tokens", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive or null, got {value}")

    @property
    def learned_size(self) -> int:
        """Rollouts of a group that are learned from."""
        return self.downsample_to or self.group_size

    def check_rollouts(self, questions: int) -> None:
        """Refuse an iteration of so few rollouts that a minibatch would be empty.

        Args:
            questions: of an iteration on this rank.

        Raises:
            ValueError: naming the setting and what it must be.
        """
        number = questions * self.learned_size
        if self.num_minibatches > number:
            raise ValueError(
                f"num_minibatches must be at most {number}, the number of rollouts to learn from, "
                f"got {self.num_minibatches}; lower it, or raise batch_size or "
                f"{'downsample_to' if self.downsample_to else 'group_size'}"
            )

    def dtype_on(self, device: torch.device) -> torch.dtype | None:
        """What the learner computes in on a device; None is the weights' own."""
        chosen = chosen_dtype(self.compute_dtype, device, "updates.compute_dtype")
        return None if self.compute_dtype == "auto" and chosen == torch.float32 else chosen

    @property
    def steps(self) -> int:
        """Optimizer steps of one iteration."""
        return self.num_epochs * self.num_minibatches

"""Generators: how a method asks a language model, in this process or on a server, for text."""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from research_rl.agents.engines import engine_for
from research_rl.agents.policy import LMPolicy, PolicyConfig, Tools
from research_rl.agents.types import Engine, SamplingParams, Sequence
from research_rl.envs.protocols import Prompt

log = logging.getLogger(__name__)

ChatMessage: TypeAlias = dict[str, Any]
"""``role`` (system, user, assistant or tool) and ``content``; of a message with tool calls, or of
one that answers a call, what OpenAI's chat completions have beside."""
ModelInput: TypeAlias = str | list[ChatMessage]
"""Plain text, or chat messages. A last message of the assistant is what the model's own message
begins with: the model goes on from there."""

_PLAIN = Prompt(None, "{prompt}")


class ToolCall(NamedTuple):
    """A tool call that a server has read out of a model's text.

    Args:
        id: by which its result is told; "" where the server gives none.
        name: of the tool.
        arguments: as JSON, or what the model wrote in its place.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Generation:
    """What a model wrote behind one input.

    Args:
        text: without the input. Where a stop string ended it, that is its end, save for characters
            that the token which completed the stop string holds behind it.
        finish: ``stop`` at a stop string, ``length`` where the tokens ran out, ``eos`` at the
            model's own end; a server that cuts stop strings off without saying so gives ``eos``
            for both. ``error`` where there is no text.
        tokens: how many the model wrote; 0 where the server does not tell.
        prompt_tokens: how many it read; None where the server does not tell.
        token_ids: what it wrote, where that is known.
        error: why there is no text; None if there is.
        reasoning: the thought that a server has moved out of the text; it stands in front of it.
        calls: the tool calls that a server has moved out of the text; they stand behind it.
    """

    text: str
    finish: Literal["stop", "eos", "length", "error"]
    tokens: int = 0
    prompt_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    error: str | None = None
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    @classmethod
    def failed(cls, error: str) -> Generation:
        """Return a generation that did not come about."""
        return cls("", "error", error=error)


class Generator(ABC):
    """Goes on with texts and chats."""

    continues: bool = True
    """Whether the model can go on with a message of the assistant that has begun."""

    @abstractmethod
    def generate(
        self,
        inputs: Seq[ModelInput],
        params: SamplingParams | Seq[SamplingParams],
        seeds: Seq[int] | None = None,
    ) -> list[Generation]:
        """Return one generation for each input, in order.

        Args:
            inputs: texts or chats.
            params: how to sample, one for all or one for each; ``max_response_tokens`` is the
                most tokens of one generation, ``stop`` may be empty.
            seeds: one for each input; None draws fresh ones. Greedy sampling reads none.

        Returns:
            Generations. What fails for one input alone is a generation with ``error`` set.

        Raises:
            ModelUnavailable: nothing can be had from the model at all.
            ValueError: the settings cannot be served, whatever the input.
        """

    def count(self, text: str) -> int | None:
        """Return the number of tokens of ``text``, None where there is no tokenizer to ask."""
        return None

    def offering(self, tools: Tools) -> Generator | None:
        """Return a generator that tells the model itself of the tools that it may call.

        None where only the messages can tell; so it is unless a class says otherwise.
        """
        return None

    def takes_role(self, role: str) -> bool:
        """Return whether a chat may have messages of this role behind the assistant's."""
        return True

    def opened(self, messages: Seq[ChatMessage]) -> str:
        """Return the thought that the chat template opens for the model, as far as is known."""
        return ""


@functools.cache
def tell_once(message: str) -> None:
    """Log a warning about what a server cannot do, unless these very words were logged before."""
    log.warning(message)


def params_of_each(
    params: SamplingParams | Seq[SamplingParams], count: int
) -> list[SamplingParams]:
    """Return the parameters of each of ``count`` inputs.

    Raises:
        ValueError: there are not as many as inputs.
    """
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise ValueError(f"params must be one for each input, got {len(params)} for {count} inputs")
    return list(params)


def load_policy(config: PolicyConfig | str, device: str | None = None) -> LMPolicy:
    """Load a policy to ask, not to train.

    Args:
        config: how to load it, or a Hugging Face id or folder.
        device: where it goes; None is a GPU if there is one.

    Raises:
        FileNotFoundError: there is no such model, neither as a folder nor on the Hub.
    """
    policy = LMPolicy.from_config(PolicyConfig(config) if isinstance(config, str) else config)
    policy.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return policy.requires_grad_(False).eval()


class LocalGenerator(Generator):
    """A Hugging Face model in this process, sampled by an engine.

    Args:
        policy: the model: a policy, how to load one, or a Hugging Face id or folder.
        engine: samples from it; what ``engine_for`` returns when None.
        device: where a model that is loaded here goes; None is a GPU if there is one.
    """

    def __init__(
        self,
        policy: LMPolicy | PolicyConfig | str,
        engine: Engine | None = None,
        device: str | None = None,
    ) -> None:
        self.policy = policy if isinstance(policy, LMPolicy) else load_policy(policy, device)
        self.engine = engine or engine_for(self.policy)

    def generate(
        self,
        inputs: Seq[ModelInput],
        params: SamplingParams | Seq[SamplingParams],
        seeds: Seq[int] | None = None,
    ) -> list[Generation]:
        """See Generator.generate; an input that outgrows the model's positions is an error.

        Inputs with equal parameters are sampled together.
        """
        prompts = [self._encode(one) for one in inputs]
        each = params_of_each(params, len(inputs))
        written = {
            row: Generation.failed(
                f"prompt and max tokens must fit in the model's {self.policy.max_length} positions "
                f"together, got {len(prompt)} + {each[row].max_response_tokens}; give fewer "
                "passages or tokens"
            )
            for row, prompt in enumerate(prompts)
            if self._too_long(prompt, each[row])
        }
        for same in dict.fromkeys(each):
            rows = [row for row, one in enumerate(each) if one == same and row not in written]
            sequences = self.engine.run(
                [prompts[row] for row in rows],
                same,
                lambda stopped: [None] * len(stopped),
                None if seeds is None else [seeds[row] for row in rows],
            )
            written |= {row: self._told(s) for row, s in zip(rows, sequences, strict=True)}
        return [written[row] for row in range(len(inputs))]

    def _too_long(self, prompt: list[int], params: SamplingParams) -> bool:
        limit = self.policy.max_length
        return limit is not None and len(prompt) + params.max_response_tokens > limit

    def count(self, text: str) -> int:
        """Return the number of tokens of ``text``."""
        return len(self.policy.encode(text))

    def _encode(self, one: ModelInput) -> list[int]:
        if isinstance(one, str):
            return self.policy.encode_prompt(_PLAIN, one)
        *before, last = one
        if last["role"] != "assistant":
            return self.policy.encode_chat(one)
        return self.policy.encode_chat(before) + self.policy.encode(last["content"])

    def _told(self, sequence: Sequence) -> Generation:
        assert sequence.finish != "running"
        ids = sequence.response_ids
        return Generation(
            text=self.policy.decode(ids),
            finish=sequence.finish,
            tokens=len(ids),
            prompt_tokens=len(sequence.prompt_ids),
            token_ids=tuple(ids),
        )

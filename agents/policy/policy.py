"""The language model that is trained: text to token ids and back, and log-probs of token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from research_rl.agents.kernels import text_config
from research_rl.agents.policy.chat import ChatTemplate
from research_rl.agents.policy.dropout import dropout_as_loaded
from research_rl.agents.policy.guarded import CUT, Guard
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig, load_model, load_tokenizer
from research_rl.agents.policy.modes import evaluating, has_adapter
from research_rl.agents.policy.notice import notice
from research_rl.agents.policy.token_ids import check_vocabulary, eos_ids
from research_rl.agents.policy.unknown_words import UnknownWords
from research_rl.agents.policy.written import check_written, merged_copy
from research_rl.envs.protocols import RESEARCH, Opened, Piece, Prompt, Protocol, opened_by
from research_rl.envs.system import scalar_text

_MARK = "\ufdd0"
"""Parts text for a moment; no character, by Unicode's own promise."""


@dataclass
class PolicyOutput:
    """What one forward pass says about each target token; T = L - 1."""

    logprobs: Tensor  # (B, T) float32, of input_ids[:, t + 1]; 0 on padding
    entropy: Tensor | None  # (B, T) float32, nats; 0 on padding
    hidden: Tensor | None  # (B, T, D), the last layer's output, for a critic


class LMPolicy(nn.Module):
    """A Hugging Face causal language model with its tokenizer.

    Args:
        model: any causal language model, possibly wrapped by peft.
        tokenizer: the model's own; text goes through it once and never comes back for a second
            encoding.

    Raises:
        ValueError: neither the tokenizer nor the generation config names an end of sequence, or
            the tokenizer has tokens that the model has no embedding for.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        check_vocabulary(model, tokenizer)
        self._chat = ChatTemplate(tokenizer)
        self._guard = Guard(tokenizer)
        self.unknown_words = UnknownWords(tokenizer)
        """Tells which words of a text the model cannot read."""
        known = eos_ids(model, tokenizer)
        self.eos_ids: frozenset[int] = known | self._chat.end_of_turn(known)
        """What ends a sequence: for the tokenizer, the generation config and the chat template."""
        pad = tokenizer.pad_token_id
        self.pad_id: int = min(self.eos_ids) if pad is None else int(pad)
        shape = text_config(model.config)
        self.max_length: int | None = getattr(shape, "max_position_embeddings", None)
        """Positions of the model, prompt and response together; None where it names no limit."""

    @classmethod
    def from_config(cls, config: PolicyConfig) -> LMPolicy:
        """Load what the configuration names, in training mode.

        Raises:
            FileNotFoundError: there is no such model, neither as a folder nor on the Hub.
            ModuleNotFoundError: LoRA is asked for and peft is not installed.
        """
        return cls(load_model(config), load_tokenizer(config))

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def hidden_size(self) -> int:
        """Numbers in a hidden state."""
        size = getattr(text_config(self.model.config), "hidden_size", None)
        if size is None:  # rare: a model whose config calls it otherwise
            model: Any = self.model
            size = model.get_output_embeddings().in_features
        return int(size)

    def encode(self, text: str) -> list[int]:
        """Ids of text that the environment wrote: no bos or eos, control tokens stay plain text.

        A lone surrogate becomes U+FFFD.
        """
        return self._piece(text, trusted=False)

    def encode_prompt(self, prompt: Prompt, question: str) -> list[int]:
        """Ids of the prompt for one question: the chat template, or plain text with the bos.

        Control tokens, and others that were added to the tokenizer, stay plain text in a question.

        Raises:
            ValueError: the prompt is a chat and the tokenizer has no chat template.
        """
        question = self._guard.cut(question)
        tools = self._tools(prompt.tools)
        if prompt.tools and not tools:
            notice("the chat template takes no tools: the system message tells of them instead")
        messages = prompt.messages(question, tools_in_text=not tools)
        if messages is None:
            first, *rest = scalar_text(prompt.text(question)).split(CUT)
            ids = self._ids(first, add_special_tokens=True)
            while len(ids) > 1 and ids[-1] in self.eos_ids:
                ids.pop()  # some tokenizers end every text
            return ids + [i for text in rest for i in self._ids(text, add_special_tokens=False)]
        return self.encode_chat(messages, tools) + self._piece(self._begins(prompt), trusted=True)

    def opened(self, prompt: Prompt, protocol: Protocol = RESEARCH) -> Opened:
        """Return what prompt and chat template open of the response, such as ``<think>``.

        Args:
            prompt: in front of the response.
            protocol: of the episode; where each turn is a message, each is opened.
        """
        messages = prompt.messages("?")
        if messages is None:
            return Opened(prompt.opened)
        by_template = self._opened_by_template(prompt)
        later = by_template or protocol.begins if protocol.keeps_eos else ""
        return Opened(by_template + self._begins(prompt), later)

    def _opened_by_template(self, prompt: Prompt) -> str:
        messages = prompt.messages("?") or []
        return opened_by(self._chat.render(messages, self._tools(prompt.tools)))

    def _begins(self, prompt: Prompt) -> str:
        """What the response begins with; nothing more where the template has begun a thought."""
        return prompt.begins if prompt.begins and not self._opened_by_template(prompt) else ""

    def _tools(self, tools: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The tools, none where the chat template would pass over them."""
        return tools if tools and self._chat.takes_tools(tools) else ()

    def encode_reply(self, protocol: Protocol, reply: str, turn: Sequence[int] = ()) -> list[int]:
        """Ids of what the environment says behind a turn, each piece encoded once and by itself.

        Control tokens count as such only in what a protocol or the chat template wrote, never in
        what was retrieved.

        Args:
            protocol: of the episode.
            reply: of the environment.
            turn: ids of the turn, which tell whether the policy has ended its message itself.

        Raises:
            ValueError: the chat template cannot have the messages of the reply.
        """
        pieces = protocol.pieces(reply)
        messages = [piece for piece in pieces if piece.role is not None]
        if not messages:
            return [i for p in pieces for i in self._of_others(protocol, p)]
        role = messages[0].role or "tool"
        glue = self._chat.glue(len(messages), role, self._tools(protocol.tools()))
        ended = bool(turn) and turn[-1] in self.eos_ids
        ids = self._behind_turn(glue.between[0], ended)
        for piece, behind in zip(messages, glue.between[1:], strict=True):
            if glue.as_json:
                piece = replace(piece, text=json.dumps(piece.text, ensure_ascii=False)[1:-1])
            ids += self._of_others(protocol, piece) + self._piece(behind, True)
        begun = opened_by(glue.between[-1])
        return ids + self._piece(protocol.begins, True) if not begun else ids

    def _behind_turn(self, glue: str, ended: bool) -> list[int]:
        """Ids of the glue behind a turn, up to its end left out if the policy has written one."""
        ids = self._piece(glue, True)
        place = next((i for i, token in enumerate(ids) if token in self.eos_ids), None)
        if not ended or place is None or self.decode(ids[:place]).strip():
            return ids
        return ids[place + 1 :]

    def encode_turn(self, protocol: Protocol, turn: str) -> list[int]:
        """Ids of a turn as this policy would have sampled it, without its end of sequence.

        The protocol's own tags are one token where the tokenizer has one for them; other control
        tokens stay plain text.
        """
        own = [token for token in self._guard.control if protocol.escape(token) != token]
        texts = re.split("|".join(f"({re.escape(t)})" for t in own), turn) if own else [turn]
        return [i for text in texts if text for i in self._piece(text, trusted=text in own)]

    def end_of_message(self, protocol: Protocol) -> int:
        """The token that ends a policy's turn: the chat template's where turns are messages."""
        if protocol.keeps_eos:
            (piece, *_) = protocol.pieces("")
            glue = self._chat.glue(1, piece.role or "tool", self._tools(protocol.tools()))
            ends = [i for i in self._piece(glue.between[0], True) if i in self.eos_ids]
            if ends:
                return ends[0]
        own = self.tokenizer.eos_token_id
        return int(own) if own in self.eos_ids else min(self.eos_ids)

    def _of_others(self, protocol: Protocol, piece: Piece) -> list[int]:
        """Ids of a piece; of one that is not trusted, only the protocol's frame may be tokens.

        A protocol makes its own tags unreadable in what it did not write, so those that are left
        are its frame.
        """
        if piece.trusted:
            return self._piece(piece.text, True)
        text = self._guard.cut(piece.text, but=lambda token: protocol.escape(token) != token)
        return [i for part in text.split(CUT) for i in self._piece(part, False)]

    def _piece(self, text: str, trusted: bool) -> list[int]:
        encoded = self.tokenizer(
            scalar_text(text), add_special_tokens=False, split_special_tokens=not trusted
        )
        ids: list[int] = encoded["input_ids"]
        return ids

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Ids of chat messages through the tokenizer's template, up to where the model begins.

        Control tokens that stand in a message stay plain text.

        Where the template has no role for a system message, its text begins the user's.

        Args:
            messages: of the chat.
            tools: JSON schemas, for a template that takes tools.

        Raises:
            ValueError: the tokenizer has no chat template, or it refuses these messages.
        """
        marked = [{role: self._marked(text) for role, text in m.items()} for m in messages]
        ids = []
        for number, piece in enumerate(self._chat.render(marked, tools).split(_MARK)):
            for part in piece.split(CUT):
                ids += self._piece(part, trusted=number % 2 == 0)
        return ids

    def _marked(self, text: str) -> str:
        """The text with a mark before and behind each control token in it."""
        clean = scalar_text(text).replace(_MARK, "\ufffd")
        found = [token for token in self._guard.control if token in clean]
        if not found:
            return clean
        return re.sub("|".join(map(re.escape, found)), rf"{_MARK}\g<0>{_MARK}", clean)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        encoded = self.tokenizer(
            scalar_text(text), add_special_tokens=add_special_tokens, split_special_tokens=True
        )
        ids: list[int] = encoded["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids as the policy wrote it, without end-of-sequence ids."""
        written = [i for i in ids if i not in self.eos_ids]
        return str(
            self.tokenizer.decode(
                written, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        temperature: float = 1.0,
        entropy: bool = True,
        hidden: bool = False,
        entropy_gradient: bool = True,
    ) -> PolicyOutput:
        """Score input_ids[:, 1:], each given everything to its left.

        Args:
            input_ids: (B, L), padded on the right.
            attention_mask: (B, L), 1 on real tokens. Padding stands to the right of all that a
                real token may look at, so the causal mask alone is right and no other is built.
            temperature: the logits are divided by it.
            entropy: also return the entropy of each next-token distribution.
            hidden: also return the last hidden states.
            entropy_gradient: whether the entropy has a gradient; without, it costs no memory that
                grows with (B, T, V).

        Raises:
            ValueError: the padding is not on the right.
        """
        if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise ValueError("attention_mask must be padded on the right, got padding on the left")
        out = self.model(input_ids=input_ids, use_cache=False, output_hidden_states=hidden)
        real = attention_mask[:, 1:].bool()
        logits = out.logits[:, :-1].float()  # (B, T, V)
        if temperature != 1.0:
            logits = logits / temperature
        log_z = logits.logsumexp(-1)
        target = logits.gather(-1, input_ids[:, 1:, None])[..., 0]
        spread = _entropy(logits, log_z, entropy_gradient) if entropy else None
        return PolicyOutput(
            logprobs=(target - log_z).masked_fill(~real, 0.0),
            entropy=None if spread is None else spread.masked_fill(~real, 0.0),
            hidden=out.hidden_states[-1][:, :-1] if hidden else None,
        )

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the optimizer moves."""
        return (p for p in self.model.parameters() if p.requires_grad)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain Hugging Face folder; a LoRA adapter is merged into the written copy.

        Embeddings that are tied in the model are not in the copy if one of them has an adapter.
        """
        model: Any = self.model
        if has_adapter(model):
            model = merged_copy(model)
        with dropout_as_loaded(model):
            model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    def check_written(self, folder: str | Path) -> None:
        """Read back what ``save_pretrained`` wrote and compare it with the policy as it is.

        Raises:
            CopyError: it is another model.
        """
        with evaluating(self.model):
            check_written(self.model, Path(folder))


def _entropy(logits: Tensor, log_z: Tensor, gradient: bool) -> Tensor:
    """Entropy (B, T) of the softmax of logits (B, T, V), in nats."""
    if gradient:
        return log_z - (logits.softmax(-1) * logits).sum(-1)
    with torch.no_grad():  # row by row, so that what is made on the way is (T, V)
        rows = zip(logits, log_z, strict=True)
        return torch.stack([z - (row.softmax(-1) * row).sum(-1) for row, z in rows])


__all__ = ["LMPolicy", "LoraConfig", "PolicyConfig", "PolicyOutput"]

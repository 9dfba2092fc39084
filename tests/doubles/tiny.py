"""Test doubles: tiny random checkpoints of several families, their tokenizer, a scripted engine."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from research_rl.agents.engines.turns import resume
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import Engine, OnStop, SamplingParams, Sequence
from research_rl.envs.protocols import RESEARCH
from research_rl.envs.system.locks import LOADING

TAGS = (*(tag for pair in RESEARCH.tags.values() for tag in pair), "\\boxed{")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}


def tokenizer(tags: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level fast tokenizer with a chat template and a few merges, ">\\n" among them.

    Args:
        tags: the protocol's tags are tokens of their own; else they are spelled in bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "/"), (">", "Ċ"), ("e", "a"), ("s", "ea")]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(m) for m in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    control = ("<pad>", "<|im_start|>", "<|im_end|>", "<eos>")
    backend.add_special_tokens([AddedToken(t, special=True) for t in control])
    if tags:
        backend.add_tokens([AddedToken(t, special=False) for t in TAGS])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model(
    family: str = "qwen2",
    tok: PreTrainedTokenizerFast | None = None,
    bias: Mapping[str, float] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """A random causal language model; both <eos> and <|im_end|> end a sequence.

    Args:
        family: model_type of transformers, e.g. qwen2, qwen3, llama, mistral.
        tok: its tokenizer; the vocabulary is padded to a multiple of 16 as real ones are.
        bias: added to the logits of these tokens, nearly.
        seed: of the weights.
        settings: further fields of the config.
    """
    tok = tok or tokenizer()
    eos = tok.convert_tokens_to_ids(["<eos>", "<|im_end|>"])
    fields: dict[str, Any] = {"tie_word_embeddings": False, **SIZES}
    if family == "mistral":
        fields["sliding_window"] = None
    fields |= {"vocab_size": -(-len(tok) // 16) * 16, "pad_token_id": tok.pad_token_id}
    fields |= {"bos_token_id": None, "eos_token_id": eos, **settings}
    torch.manual_seed(seed)
    with LOADING:
        net = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
    net.generation_config.eos_token_id = eos
    if bias:
        with torch.no_grad():
            net.get_input_embeddings().weight[:, 0] = 4.0
            head = net.get_output_embeddings().weight
            head[:, 0] = 0.0
            for token, value in bias.items():
                head[tok.convert_tokens_to_ids(token), 0] = value / fields["hidden_size"] ** 0.5
    return net


def wrapper(tok: PreTrainedTokenizerFast | None = None, **text: Any) -> Any:
    """A random Gemma 3 with images: what its config says of the text stands in ``text_config``.

    Args:
        tok: its tokenizer.
        text: further fields of the text's config.
    """
    tok = tok or tokenizer()
    fields = {**SIZES, "vocab_size": -(-len(tok) // 16) * 16, "pad_token_id": tok.pad_token_id}
    fields |= {"bos_token_id": None, "eos_token_id": tok.eos_token_id, **text}
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    seen |= {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model(
        "gemma3", text_config=fields, vision_config=seen, mm_tokens_per_image=1
    )
    torch.manual_seed(0)
    with LOADING:
        return AutoModelForCausalLM.from_config(config)


def policy(
    family: str = "qwen2",
    tags: bool = True,
    bias: Mapping[str, float] | None = None,
    seed: int = 0,
    **settings: Any,
) -> LMPolicy:
    """A tiny random policy in memory."""
    tok = tokenizer(tags)
    return LMPolicy(model(family, tok, bias, seed, **settings), tok)


def checkpoint(folder: Path, family: str = "qwen2", **settings: Any) -> Path:
    """Save a tiny random model and its tokenizer as a real checkpoint; return the folder."""
    tok = tokenizer()
    model(family, tok, **settings).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


class ScriptedEngine(Engine):
    """Writes what a script says: turn after turn of text for each prompt, then end of sequence.

    Args:
        policy: whose tokenizer encodes the script.
        scripts: turns of each prompt, in the order of the prompts; they repeat when there are
            more prompts.
    """

    def __init__(self, policy: LMPolicy, scripts: Seq[Seq[str]]) -> None:
        self.policy = policy
        self.scripts = [list(s) for s in scripts]

    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run; the log-prob of every token is -1."""
        sequences = [Sequence(list(p)) for p in prompts]
        turn = 0
        while running := [(i, s) for i, s in enumerate(sequences) if s.finish == "running"]:
            for i, s in running:
                self._write(s, self.scripts[i % len(self.scripts)][turn:], params)
            stopped = [(i, s) for i, s in running if s.finish in ("stop", "eos")]
            for (_, s), given in zip(stopped, on_stop(stopped) if stopped else [], strict=True):
                resume(s, given, params)
            turn += 1
        return sequences

    def _write(self, s: Sequence, turns: Seq[str], params: SamplingParams) -> None:
        text = turns[0] if turns else ""
        ids = self.policy.encode(text)
        stops = text.endswith(params.stop)
        if not stops:
            ids.append(min(self.policy.eos_ids))
        for token in ids[: params.max_response_tokens - len(s.response_ids)]:
            s.append_sampled(token, -1.0)
        room = len(s.turn_ids) == len(ids)
        s.finish = ("stop" if stops else "eos") if room else "length"

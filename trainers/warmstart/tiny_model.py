"""A language model small enough to train on a CPU: one token for each word, random weights.

With the default of two layers of width 128 the warm start takes a few minutes on one core.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence as InOrder
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


@dataclass
class TinyModelConfig:
    """Shape of the tiny model.

    Args:
        hidden_size: width; the feed-forward layers are three times as wide.
        num_layers: transformer layers.
        num_heads: attention heads.
        max_length: positions it can attend over.
    """

    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    max_length: int = 512


def word_tokenizer(words: Sequence[str], marks: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at white space and knows ``words``; others are ``<unk>``.

    A prompt that is encoded with special tokens begins with ``<bos>``. The tags of the protocol
    are words like any others.

    Args:
        words: the vocabulary.
        marks: words that stand for themselves also where no white space is around them, those that
            hold others first.
    """
    vocabulary = list(dict.fromkeys([PAD, BOS, EOS, UNK, *words]))
    ids = {word: i for i, word in enumerate(vocabulary)}
    backend = Tokenizer(WordLevel(ids, unk_token=UNK))
    backend.pre_tokenizer = WhitespaceSplit()
    if marks:
        isolate = Split(Regex("|".join(map(re.escape, marks))), "isolated")
        backend.pre_tokenizer = InOrder([WhitespaceSplit(), isolate])
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )


def tiny_shape(config: TinyModelConfig, words: int, **special_tokens: Any) -> LlamaConfig:
    """Return the shape of the tiny model, which `research plan` asks for before there is one.

    Args:
        config: its settings.
        words: size of the vocabulary.
        special_tokens: ids of Llama's config, ``pad_token_id`` for instance.
    """
    return LlamaConfig(
        vocab_size=words,
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=config.max_length,
        attention_bias=True,
        tie_word_embeddings=True,
        initializer_range=0.05,  # with the usual 0.02 so narrow a model learns to copy much later
        **special_tokens,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, config: TinyModelConfig, seed: int
) -> LlamaForCausalLM:
    """Return a Llama model with random weights and tied embeddings over the vocabulary."""
    shape = tiny_shape(
        config,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
    model.set_attn_implementation("eager")  # the fused CPU kernels are slower on short sequences
    return model

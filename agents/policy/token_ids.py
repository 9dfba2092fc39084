"""Checks that a model and its tokenizer agree: how many token ids there are, and which end a text.

A tokenizer with tags added to it, over a model that was not resized, writes ids that the model has
no row for; it shows as an IndexError in the middle of the first rollout.
"""

from __future__ import annotations

import itertools
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from research_rl.agents.policy.notice import notice


def embedding_rows(model: Any) -> int:
    """Return the number of token ids that the model can read."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Control tokens that nothing can write may stand beyond: Gemma 3's text models share the
    tokenizer of those with images, which has one for them.

    Raises:
        ValueError: text, an end of sequence or the chat template could write such a token.
    """
    rows, vocabulary = embedding_rows(model), tokenizer.get_vocab()
    beyond = {token: i for token, i in vocabulary.items() if i >= rows}
    if not beyond:
        return
    template = str(getattr(tokenizer, "chat_template", None) or "")
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    control = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    written = sorted(t for t in beyond if t not in control or t in named or t in template)
    if not written:
        notice(
            "the tokenizer has control tokens that the model cannot read, and nothing writes: "
            + ", ".join(sorted(beyond))
        )
        return
    raise ValueError(
        f"the tokenizer must have no more tokens than the model has embeddings, got ids up to "
        f"{max(beyond.values())} for {rows} embeddings, {written[0]!r} among them; name the "
        "model's own tokenizer with policy.tokenizer, or give the model more rows "
        "(model.resize_token_embeddings(len(tokenizer)), then save_pretrained)"
    )


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every id that ends a sequence: the tokenizer's and all of the generation config's.

    Raises:
        ValueError: neither names one.
    """
    generation: Any = getattr(model, "generation_config", None)
    known = [tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)]
    lists = [ids if isinstance(ids, (list, tuple)) else [ids] for ids in known]
    eos = frozenset(int(i) for i in itertools.chain(*lists) if i is not None)
    if not eos:
        raise ValueError(
            "the model must have an end-of-sequence id, got none from its tokenizer and none from "
            "its generation config; set tokenizer.eos_token or eos_token_id in "
            "generation_config.json"
        )
    return eos

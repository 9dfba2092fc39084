"""A tiny random BERT and its WordPiece tokenizer, saved as people save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_bert(folder: Path, kind: Any, **fields: Any) -> Path:
    """Save a random model of two layers.

    Args:
        folder: to make.
        kind: a class of transformers whose config is BERT's.
        fields: of the config, besides the small ones.

    Returns:
        The folder.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789:"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        **fields,
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

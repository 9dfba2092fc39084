"""A tiny random model of each family of causal language models that transformers ships."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched: shapes and weights are made here

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from research_rl.agents.policy import LMPolicy
from research_rl.trainers.warmstart.tiny_model import word_tokenizer

LARGEST = 30_000_000
"""Weights of a model that still counts as tiny."""
WORDS = [f"w{i}" for i in range(300)]
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "max_sequence_length": 512,
    "n_positions": 512,
    "initializer_range": 0.2,
    "n_inner": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "rotary_dim": 4,
    "d_model": 32,
    "d_inner": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "decoder_layers": 2,
    "decoder_ffn_dim": 64,
    "decoder_attention_heads": 4,
    "encoder_layers": 2,
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "emb_dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 64,
    "chunk_size": 16,
    "n_groups": 1,
    "lru_width": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 16,
    "attention_window_size": 16,
    "num_nextn_predict_layers": 0,
    "num_kv_shared_layers": 0,
}
"""For each field that a config may have, a small value."""
SPECIAL: dict[str, dict[str, Any]] = {
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "nemotron_h": {"layer_types": ["mamba", "attention", "moe"], "num_hidden_layers": 3},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"]},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
        "hybrid_layer_ids": [2],
    },
    "zaya": {"num_experts_per_tok": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "xlnet": {"d_head": 8},
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2},
}
"""Fields that a family needs besides."""


def families() -> dict[str, str]:
    """Each model type of transformers that has a causal language model, with its class."""
    named = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return {name: cls if isinstance(cls, str) else cls[0] for name, cls in sorted(named.items())}


def tiny_config(family: str) -> Any:
    """A config of a family with small numbers wherever it has one."""
    usual = AutoConfig.for_model(family)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

    fields = small(usual) | ends | SPECIAL.get(family, {})
    for inner in ("text_config", "vision_config", "audio_config", "decoder"):
        part = getattr(usual, inner, None)
        if part is not None:
            fields[inner] = small(part) | ends
            if model_type := getattr(part, "model_type", None):
                fields[inner]["model_type"] = model_type
                fields[inner] |= SPECIAL.get(model_type, {})
    if "num_decoder_layers" in fields:
        fields.pop("num_hidden_layers", None)
    if hasattr(usual, "is_decoder"):
        fields["is_decoder"] = True
    return AutoConfig.for_model(family, **fields)


def small(usual: Any) -> dict[str, Any]:
    """Small values of those fields that a config has."""
    found = {}
    for name, value in SMALL.items():
        own = getattr(type(usual), name, None)
        settable = not isinstance(own, property) or own.fset is not None
        try:
            known = getattr(usual, name, None) is not None
        except RuntimeError:  # it differs from layer to layer, and is left as it is
            continue
        if settable and (known or (name == "head_dim" and hasattr(usual, name))):
            found[name] = value
    if found.get("kv_lora_rank"):  # latent attention has a key head for each query head
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found


def tiny_policy(family: str, dtype: str) -> LMPolicy:
    """A random model of a family.

    Raises:
        ValueError: it cannot be made small.
    """
    config = tiny_config(family)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    size = sum(p.numel() for p in empty.parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million weights are left where all is made small")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    return LMPolicy(model, word_tokenizer(WORDS)).eval()

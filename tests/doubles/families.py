"""Settings of tiny models whose caches hold more than keys and values, for tiny.model."""

from __future__ import annotations

from typing import Any

LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
MAMBA: dict[str, Any] = {
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
CACHES: dict[str, dict[str, Any]] = {
    "qwen3_next": {**LINEAR, **MOE},
    "qwen3_5_text": LINEAR,
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 64,
        "block_auto_adjust_ff_dim": False,
    },
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "nemotron_h": {
        "layer_types": ["mamba", "attention", "moe"],
        "num_hidden_layers": 3,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
        "time_step_min": 1e-9,  # a floor that its decode step leaves out
    },
    "gpt_oss": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "rwkv": {},
    "bloom": {},
    "stablelm": {},
    "gemma2": {"sliding_window": 16, "attn_logit_softcapping": 2.0},
}
WINDOWS: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}
OLD: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
PLAIN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen2-window": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 6},
    "qwen2_moe": MOE,
    "qwen3": {},
    "qwen3_moe": MOE,
    "mistral": {"sliding_window": 6},
    "mistral-all": {},
    "mixtral": {"num_local_experts": 2},
    "gemma": {},
    "gemma2": {**WINDOWS, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": WINDOWS,
    "vaultgemma": WINDOWS,
    "gpt2": OLD,
    "gpt_bigcode": OLD,
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "biogpt": {},
    "phi": {},
    "phi3": {},
    "phimoe": {**MOE, "num_local_experts": 4},
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {**WINDOWS, "logit_scale": 0.25},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOWS,
    "olmoe": MOE,
    "starcoder2": {"sliding_window": 6},
    "glm4": {},
    "exaone4": WINDOWS,
    "smollm3": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "hyperclovax": {"logits_scaling": 0.5},
    "seed_oss": {},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **MOE,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
}
"""Models whose attention is all that mixes tokens, and which hand it on: none may be refused."""
MIXING: dict[str, dict[str, Any]] = {
    **{k: v for k, v in CACHES.items() if k != "gemma2"},
    "gptj": {**OLD, "rotary_dim": 8},
    "codegen": {**OLD, "rotary_dim": 8},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 6,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 64},
    "nemotron": {},
    "doge": {},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "jamba": {
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "num_experts": 2,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 6, "num_hidden_layers": 3},
}
"""Models that mix tokens in other ways too, or attend by code of their own: all must be refused."""

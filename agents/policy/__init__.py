"""The policy: a causal language model and its tokenizer, loaded and encoded with care.

Read first: policy.py
May import: agents.kernels, envs
"""

from __future__ import annotations

from research_rl.agents.policy.loading import (
    Dtype,
    LoraConfig,
    PolicyConfig,
    decoder_layers,
    empty_model,
    load_model,
    load_tokenizer,
)
from research_rl.agents.policy.policy import LMPolicy, PolicyOutput, Reference
from research_rl.agents.policy.working_weights import WorkingWeights

__all__ = [
    "Dtype",
    "LMPolicy",
    "LoraConfig",
    "PolicyConfig",
    "PolicyOutput",
    "Reference",
    "WorkingWeights",
    "decoder_layers",
    "empty_model",
    "load_model",
    "load_tokenizer",
]

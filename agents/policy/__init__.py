"""The policy: a causal language model and its tokenizer, loaded and encoded with care.

Read first: policy.py
May import: agents.kernels, envs
"""

from __future__ import annotations

from research_rl.agents.policy.loading import (
    LoraConfig,
    PolicyConfig,
    WeightDtype,
    decoder_layers,
    empty_model,
    load_model,
    load_tokenizer,
)
from research_rl.agents.policy.modes import evaluating
from research_rl.agents.policy.policy import LMPolicy, PolicyOutput, Reference
from research_rl.agents.policy.working_weights import WorkingWeights

__all__ = [
    "LMPolicy",
    "LoraConfig",
    "PolicyConfig",
    "PolicyOutput",
    "Reference",
    "WeightDtype",
    "WorkingWeights",
    "decoder_layers",
    "empty_model",
    "evaluating",
    "load_model",
    "load_tokenizer",
]

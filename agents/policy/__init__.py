"""The policy: a causal language model and its tokenizer, loaded and encoded with care.

Read first: policy.py
May import: agents.kernels, agents.proofs, envs
"""

from __future__ import annotations

from research_rl.agents.policy.chat import ChatTemplate, ChatTemplateConfig, Tools
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
from research_rl.agents.policy.policy import LMPolicy, PolicyOutput
from research_rl.agents.policy.reference import Reference
from research_rl.agents.policy.unknown_words import UnknownWords, quoted_words
from research_rl.agents.policy.working_weights import WorkingWeights
from research_rl.agents.policy.written import is_untied_by_adapter

__all__ = [
    "ChatTemplate",
    "ChatTemplateConfig",
    "LMPolicy",
    "LoraConfig",
    "PolicyConfig",
    "PolicyOutput",
    "Reference",
    "Tools",
    "UnknownWords",
    "WeightDtype",
    "WorkingWeights",
    "decoder_layers",
    "empty_model",
    "evaluating",
    "is_untied_by_adapter",
    "load_model",
    "load_tokenizer",
    "quoted_words",
]

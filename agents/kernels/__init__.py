"""Forward passes written for speed: packed rollouts, slots of a cache, the output head.

Read first: packed_forward.py
May import: nothing of ours
"""

from __future__ import annotations

from research_rl.agents.kernels.cpu_linear import pack_linears
from research_rl.agents.kernels.decoder import Decoder, decoder_of
from research_rl.agents.kernels.hf_attention import Seen, rope_types
from research_rl.agents.kernels.kv_cache import SlotCache
from research_rl.agents.kernels.lm_head import CHUNK_BYTES, LMHead
from research_rl.agents.kernels.model_config import text_config
from research_rl.agents.kernels.packed_forward import ENTRY, PACKED, PackedForward
from research_rl.agents.kernels.packing import Packed, pack
from research_rl.agents.kernels.slot_attention import (
    SLOTS,
    Block,
    FlatBatch,
    Span,
    attend_slots,
    flat_batch,
    slots_enabled,
)
from research_rl.agents.kernels.torch_internals import (
    PLAIN_KERNELS,
    attention_replaced,
    parameters_of,
    plain_kernels,
    unsplit_modules,
)

__all__ = [
    "CHUNK_BYTES",
    "ENTRY",
    "PACKED",
    "PLAIN_KERNELS",
    "SLOTS",
    "Block",
    "Decoder",
    "FlatBatch",
    "LMHead",
    "Packed",
    "PackedForward",
    "Seen",
    "SlotCache",
    "Span",
    "attend_slots",
    "attention_replaced",
    "decoder_of",
    "flat_batch",
    "pack",
    "pack_linears",
    "parameters_of",
    "plain_kernels",
    "rope_types",
    "slots_enabled",
    "text_config",
    "unsplit_modules",
]

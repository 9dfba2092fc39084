"""Forward passes written for speed: packed rollouts, slots of a cache, the output head.

They use the weights of a Hugging Face model and give its results up to rounding. A model that they
do not know is left to its own forward pass, or refused with the reason.

Read first: packed_forward.py
May import: agents.machine
"""

from __future__ import annotations

from research_rl.agents.kernels.cpu_linear import pack_linears
from research_rl.agents.kernels.decoder import Decoder, decoder_of
from research_rl.agents.kernels.hf_attention import Seen, rope_types
from research_rl.agents.kernels.kv_cache import SlotCache
from research_rl.agents.kernels.lm_head import CHUNK_BYTES, GPU_BLOCKS, LMHead
from research_rl.agents.kernels.model_config import text_config
from research_rl.agents.kernels.packed_forward import ENTRY, PACKED, PackedForward
from research_rl.agents.kernels.packing import Packed, pack, piece_size
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
    "GPU_BLOCKS",
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
    "piece_size",
    "plain_kernels",
    "rope_types",
    "slots_enabled",
    "text_config",
    "unsplit_modules",
]

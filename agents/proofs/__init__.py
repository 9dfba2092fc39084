"""Proofs that a model may be called otherwise than by its own forward pass, and copies of it used.

Read first: packed.py, then witness.py
May import: agents.kernels
"""

from __future__ import annotations

from research_rl.agents.proofs.copies import CopyError, prove_copy, prove_merge
from research_rl.agents.proofs.mixers import mixer_gap, mixers_noted
from research_rl.agents.proofs.packed import prove_packed
from research_rl.agents.proofs.padded import prove_padded
from research_rl.agents.proofs.slots import prove_slots

__all__ = [
    "CopyError",
    "mixer_gap",
    "mixers_noted",
    "prove_copy",
    "prove_merge",
    "prove_packed",
    "prove_padded",
    "prove_slots",
]

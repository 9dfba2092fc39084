"""A policy as it is written to a folder: adapters merged, and read back before it counts.

Tied embeddings are one weight in two places. An adapter on one of them must not change the other:
merged into a tied weight it would, and a folder that says "tied" would lose it when it is read.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from research_rl.agents.kernels import text_config
from research_rl.agents.proofs import CopyError, prove_copy
from research_rl.envs.system import LOADING

_INSTEAD = "write it with model.save_pretrained and compare, and keep the checkpoint"


def merged_copy(model: Any) -> Any:
    """A copy of a peft model with its adapters merged; embeddings are untied where they must be."""
    twin = copy.deepcopy(model)
    base = twin.get_base_model()
    if is_untied_by_adapter(base):
        head = _bottom(base.get_output_embeddings())
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
        text_config(base.config).tie_word_embeddings = False
    return twin.merge_and_unload()


def is_untied_by_adapter(model: Any) -> bool:
    """Whether input and output embeddings are one weight, and one of them has an adapter.

    Args:
        model: below the wrapper of peft.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if not all(isinstance(end, nn.Module) for end in ends):
        return False
    below = [_bottom(end) for end in ends]
    shared = getattr(below[0], "weight", None) is getattr(below[1], "weight", None)
    return shared and any(end is not inner for end, inner in zip(ends, below, strict=True))


def _bottom(layer: Any) -> Any:
    """The layer below its adapters."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


@torch.no_grad()
def check_written(model: Any, folder: Path) -> None:
    """Read a folder back: its log-probs of two texts must be those of the model.

    The folder is loaded on the host, which takes memory for another copy of the weights meanwhile.

    Args:
        model: in evaluation mode, possibly wrapped by peft.
        folder: what has been written of it.

    Raises:
        CopyError: the folder holds another model.
    """
    adapted = hasattr(model, "peft_config")
    base = model.get_base_model() if adapted else model
    with LOADING:
        found = type(base).from_pretrained(str(folder), dtype="auto").eval()
    what = f"the folder {folder.name}"
    if not adapted:
        theirs = dict(base.named_parameters())
        other = [
            name
            for name, weight in found.named_parameters()
            if name not in theirs or not _same(theirs[name], weight)
        ]
        if other:
            raise CopyError(
                f"{what} must hold the weights of the policy, got others for {len(other)} of "
                f"{len(theirs)} tensors, such as {other[0]}; {_INSTEAD}"
            )
    prove_copy(base, found, what, _INSTEAD)


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two weights are equal bit for bit; NaN equals NaN."""
    a, b = (x.detach().cpu() for x in (ours, theirs))
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan())).all())

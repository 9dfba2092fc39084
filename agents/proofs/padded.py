"""The proof that padded rows are learned from as each would be alone.

It is for models that learn so because they cannot be packed: what is left to them must be right.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from research_rl.agents.proofs.claim import Claim, centred, spoiled, state_put_back
from research_rl.agents.proofs.witness import finite

log = logging.getLogger(__name__)
_SIZES = (9, 6, 12)
_LARGE = 64.0
"""Embeddings are multiplied by it, so that what is kept of them is not small."""


@torch.no_grad()
def prove_padded(model: Any, alone: bool = False) -> None:
    """Refuse a model that does not compute each row of a padded batch as it would alone.

    Args:
        model: a causal language model, in evaluation mode.
        alone: rows are never computed together; only what lasts from one to the next is tried.

    Raises:
        NotImplementedError: naming what the model does, and the setting that avoids it.
    """
    claim = Claim("learning from padded rollouts", model)
    embedded = model.get_input_embeddings().weight
    ids = torch.arange(len(_SIZES) * max(_SIZES), device=embedded.device)
    ids = ids.view(len(_SIZES), -1) * 7 % embedded.shape[0]
    sizes = torch.tensor(_SIZES, device=ids.device)
    real = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]

    def single(row: int) -> Tensor:
        logits: Tensor = model(input_ids=ids[row : row + 1, : sizes[row]], use_cache=False).logits
        return logits[0].float()

    def together() -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits.float()

    with torch.autocast(ids.device.type, enabled=False), state_put_back(model):
        first = single(0)
        if not finite(first):
            log.warning("%s is taken unproved: its logits are not finite", claim.who)
            return
        with spoiled(model, torch.ones_like(ids[1:2, : sizes[1]], dtype=torch.bool), _LARGE):
            single(1)
        must, got = "keep nothing of one batch for the next", "whose logits differ a second time"
        claim.check_repeated(single(0), first, must, got)
        if alone:
            return
        claim = Claim(claim.who, model, "set model.updates.micro_batch_size: 1")
        logits = together()
        rows = torch.cat([single(row) for row in range(len(ids))])
        got = "whose logits differ in company"
        claim.check_equal(centred(logits[real]), centred(rows), "compute rows apart", got)
        with spoiled(model, ~real, _LARGE):  # what comes later is masked, which NaN is not
            found = together()
        must, got = "not see what comes later", "whose logits change with it"
        claim.check_repeated(centred(found[real]), centred(logits[real]), must, got)
        for row in range(len(ids)):
            spoil = torch.zeros_like(real)
            spoil[row] = True
            with spoiled(model, spoil):
                found = together()
            claim.check_apart(found[real], spoil[real], "rollouts")

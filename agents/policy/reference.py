"""The reference: the policy before its first update, which the KL is measured from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from research_rl.agents.kernels import Packed, PackedForward
from research_rl.agents.policy.modes import evaluating, has_adapter, without_adapter
from research_rl.agents.policy.policy import LMPolicy


class Reference:
    """The policy's frozen starting point: a copy, or with LoRA the same model, adapter off.

    Not a module: it is neither trained nor stored in checkpoints.

    Args:
        policy: the policy before its first update.
        dtype: of the copy; None is the policy's own.
        model: a copy that is made already, as that of a model in shards has to be.
    """

    def __init__(
        self,
        policy: LMPolicy,
        dtype: torch.dtype | None = None,
        model: PreTrainedModel | None = None,
    ) -> None:
        self._shared = has_adapter(policy.model)
        self._placed = self._shared or model is not None
        if self._shared:
            self._policy = policy
            return
        self._policy = LMPolicy(model or copy.deepcopy(policy.model), policy.tokenizer)
        self._policy.requires_grad_(False).eval()
        if model is None:
            for weight in self._policy.parameters():  # not the rotary frequencies beside them
                weight.data = weight.data.to(dtype or weight.dtype)

    def to(self, device: torch.device | str) -> Reference:
        """Move the copy; a shared model and one in shards stay where they are."""
        if not self._placed:
            self._policy.to(device)
        return self

    def logprobs(
        self, input_ids: Tensor, attention_mask: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return (B, T) float32 log-probs of input_ids[:, 1:], without a graph."""
        with self._frozen():
            out = self._policy(input_ids, attention_mask, temperature, entropy=False)
        logprobs: Tensor = out.logprobs
        return logprobs

    def packed_logprobs(self, packed: Packed, temperature: float = 1.0) -> Tensor:
        """Return (N,) float32 log-probs of the targets of a flat batch, without a graph."""
        forward = PackedForward(self._policy.model)
        with self._frozen(), forward.enabled():
            hidden = forward.hidden(packed)
            return forward.head(temperature).logprobs(hidden, packed.targets)[0]

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Inside, the model is the starting point: without adapter, dropout and graph."""
        model: Any = self._policy.model
        start = without_adapter(model) if self._shared else nullcontext()
        with evaluating(model), torch.no_grad(), start:
            yield

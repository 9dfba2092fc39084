"""Forward and backward passes of the policy over rollouts, to score them and to learn from them.

Five rollouts of one question are read as one flat row: their prompt once, the five responses
behind it, no padding. The output head computes logits for the tokens that the policy wrote only.
If the loss of each token depends on that token alone, loss and gradient are computed in one pass
over the vocabulary. A model that cannot be called so reads padded rows; the gradient is the same.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from research_rl.agents.kernels import Packed, PackedForward, pack
from research_rl.agents.policy import (
    LMPolicy,
    PolicyOutput,
    Reference,
    WorkingWeights,
    evaluating,
)
from research_rl.agents.proofs import prove_packed, prove_padded
from research_rl.trainers.algorithms import Algorithm, Batch, kl_estimate
from research_rl.trainers.distributed import is_sharded, most
from research_rl.trainers.portions import Cost, PackedCost, PaddedCost, portions
from research_rl.trainers.settings import Updates

log = logging.getLogger(__name__)
_OFF = 0.05
"""Relative difference from which a token's probability counts as another one."""

MISMATCH = ("mismatch_mean", "mismatch_5pct", "mismatch_k3")
"""Metrics of how far the engine's log-probs of the sampled tokens are from the learner's: the mean
distance in nats, the share of tokens whose probability differs by more than 5 %, and the KL by the
estimator k3."""

Backward = Callable[[Tensor], Any]


class Learner:
    """Runs the policy over rollouts: for log-probs, values and the gradient of the loss.

    Args:
        policy: the model that is trained.
        algorithm: the learning rule.
        updates: the limits of a portion, and the dtype to compute in.
        temperature: of sampling; logits are divided by it.
        reference: the policy before training, if the algorithm needs it.
    """

    def __init__(
        self,
        policy: LMPolicy,
        algorithm: Algorithm,
        updates: Updates,
        temperature: float = 1.0,
        reference: Reference | None = None,
    ) -> None:
        self.policy, self.algorithm, self.updates = policy, algorithm, updates
        self.temperature, self.reference = temperature, reference
        self.packed = packed_forward(policy, updates.micro_batch_size == 1)
        """Calls the model with flat rows; None if it cannot be called so."""
        self.working: WorkingWeights | None = None
        dtype = updates.dtype_on(policy.device)
        if dtype is not None and not is_sharded(policy.model):  # shards are cast on the way
            self.working = WorkingWeights(policy.model, dtype)
        self.forward_tokens = 0
        """Tokens that the policy has read with a gradient so far, padding included."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Prepare the model for calls; backward passes must also run inside of this context."""
        with ExitStack() as stack:
            if self.packed is not None:
                stack.enter_context(self.packed.enabled())
            if self.working is not None:
                stack.enter_context(torch.autocast(self.policy.device.type, enabled=False))
                stack.enter_context(self.working.used())
            yield

    def moved(self) -> None:
        """Renew the low-precision copies; call it after the weights have changed."""
        if self.working is not None:
            self.working.refresh()

    def portions(self, rows: Batch) -> list[Tensor]:
        """Return the row indices of each forward pass; see ``portions.portions``."""
        cost: type[Cost] = PaddedCost if self.packed is None else PackedCost
        return portions(rows, cost, self.updates.micro_batch_size, self.updates.micro_batch_tokens)

    @torch.no_grad()
    def score(self, batch: Batch) -> None:
        """Set the log-probs and values that the batch is compared with, then its advantages."""
        rule = self.algorithm
        blank = torch.zeros_like(batch.sampled_logprobs)
        if rule.needs_old_logprobs and self.updates.steps > 1:
            batch.old_logprobs = blank.clone()
        if rule.needs_values:
            batch.values = blank.clone()
        if self.reference is not None:
            batch.ref_logprobs = blank.clone()
        if batch.old_logprobs is not None or batch.values is not None or self.reference is not None:
            with evaluating(self.policy.model), self.ready():
                parts = self.portions(batch)
                # ranks must run the same number of passes, or a collective of sharded weights never
                # ends; one with fewer portions scores a row again
                spare = parts[-1][:1]
                for index in [*parts, *[spare] * (most(len(parts)) - len(parts))]:
                    self._score_rows(batch, index)
        advantages = rule.advantages(batch)
        if advantages.ndim == 1:
            advantages = advantages[:, None]
        batch.advantages = advantages * batch.loss_mask

    def _score_rows(self, batch: Batch, index: Tensor) -> None:
        rows = batch[index].trim()
        width = rows.loss_mask.shape[1]
        packed = pack(rows.input_ids, rows.loss_mask) if self.packed is not None else None
        if batch.old_logprobs is not None or batch.values is not None:
            out = self._forward(rows, packed, entropy=False)
            if batch.old_logprobs is not None:
                batch.old_logprobs[index, :width] = out.logprobs
            if batch.values is not None:
                batch.values[index, :width] = self.algorithm.values(out).float()
        if self.reference is None or batch.ref_logprobs is None:
            return
        if packed is None:
            found = self.reference.logprobs(rows.input_ids, rows.attention_mask, self.temperature)
        else:
            found = packed.padded(self.reference.packed_logprobs(packed, self.temperature))
        batch.ref_logprobs[index, :width] = found

    def backward(self, rows: Batch, backward: Backward, compare: bool = False) -> dict[str, Tensor]:
        """Compute the loss of one portion and add its gradient to the weights' gradients.

        Args:
            rows: a portion with advantages and weights.
            backward: called with the loss; computes its gradient.
            compare: also return how far the sampled log-probs are from the learner's.

        Returns:
            Sums over the tokens, without a graph: ``loss``, ``weight`` and the algorithm's
            metrics; with compare also ``tokens`` and those named in ``MISMATCH``.
        """
        rows = rows.trim()
        with self.ready():
            if self.packed is None:
                loss, sums = self._padded_loss(rows, compare)
            else:
                loss, sums = self._packed_loss(rows, self.packed, compare)
            backward(loss)
        sums["loss"], sums["weight"] = loss, rows.weights.sum()
        return {name: value.detach().float() for name, value in sums.items()}

    def _padded_loss(self, rows: Batch, compare: bool) -> tuple[Tensor, dict[str, Tensor]]:
        out = self._forward(rows, None)
        loss, metrics = self.algorithm.loss(out, rows)
        return loss, {**metrics, **(_differences(out, rows) if compare else {})}

    def _packed_loss(
        self, rows: Batch, forward: PackedForward, compare: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rule, packed = self.algorithm, pack(rows.input_ids, rows.loss_mask)
        if not rule.separable:
            out = self._forward(rows, packed)
            loss, metrics = rule.loss(out, rows)
            return loss, {**metrics, **(_differences(out, rows) if compare else {})}
        tokens = rows.tokens(packed.rows, packed.columns)
        sums = defaultdict[str, Tensor](lambda: torch.zeros((), device=packed.ids.device))

        def token_loss(
            part: slice, logprobs: Tensor, entropy: Tensor, hidden: Tensor | None
        ) -> Tensor:
            some = tokens[part]
            states = None if hidden is None else hidden[:, None]
            out = PolicyOutput(logprobs[:, None], entropy[:, None], states)
            loss, metrics = rule.loss(out, some)
            for name, value in {**metrics, **(_differences(out, some) if compare else {})}.items():
                sums[name] = sums[name] + value.detach()
            return loss

        self.forward_tokens += len(packed.ids)
        hidden = forward.hidden(packed)
        loss = forward.head(self.temperature).loss(
            hidden,
            packed.targets,
            token_loss,
            [p for p in rule.parameters() if p.requires_grad],
            entropy_gradient=rule.entropy_gradient,
            pass_hidden=rule.needs_values,
        )
        return loss, dict(sums)

    def _forward(self, rows: Batch, packed: Packed | None, entropy: bool = True) -> PolicyOutput:
        """The policy's output for the rows, (B, T); with packed rows 0 where it wrote nothing."""
        rule, size = self.algorithm, rows.input_ids.numel()
        if torch.is_grad_enabled():
            self.forward_tokens += size if packed is None else len(packed.ids)
        if packed is not None and self.packed is not None:
            states = self.packed.hidden(packed)
            head = self.packed.head(self.temperature)
            logprobs, spread = head.logprobs(states, packed.targets, entropy)
            spread = spread if rule.entropy_gradient else spread.detach()
            return PolicyOutput(
                packed.padded(logprobs),
                packed.padded(spread) if entropy else None,
                packed.padded(states) if rule.needs_values else None,
            )
        out: PolicyOutput = self.policy(
            rows.input_ids,
            rows.attention_mask,
            temperature=self.temperature,
            entropy=entropy,
            hidden=rule.needs_values,
            entropy_gradient=rule.entropy_gradient,
        )
        return out


def packed_forward(policy: LMPolicy, alone: bool = False) -> PackedForward | None:
    """Return what calls the policy's model with flat rows, or None if the model does not allow it.

    A model that prove_packed refuses learns from padded rows if prove_padded allows them.

    Args:
        policy: the model that is trained.
        alone: padded rows would be computed one by one.

    Raises:
        NotImplementedError: the model does not allow padded rows either.
    """
    forward = PackedForward(policy.model)
    with evaluating(policy.model):
        try:
            prove_packed(forward)
        except (NotImplementedError, TypeError, AttributeError) as error:
            log.warning("learning from padded rollouts, which costs more: %s", error)
            prove_padded(forward.model, alone)
            return None
    return forward


@torch.no_grad()
def _differences(out: PolicyOutput, rows: Batch) -> dict[str, Tensor]:
    """Sums over the loss tokens of the distance between sampled and recomputed log-probs."""
    ours, theirs = out.logprobs[rows.loss_mask], rows.sampled_logprobs[rows.loss_mask]
    return {
        "tokens": rows.loss_mask.sum().float(),
        MISMATCH[0]: (ours - theirs).abs().sum(),
        MISMATCH[1]: ((ours - theirs).exp() - 1).abs().gt(_OFF).sum().float(),
        MISMATCH[2]: kl_estimate(theirs, ours, "k3").sum(),
    }

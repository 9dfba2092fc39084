"""The output head: log-probs of tokens from hidden states, with one chunk of logits at a time.

The logits of a long batch over a large vocabulary are by far the largest tensor of a training step.
Here they live for one chunk of tokens at a time, and the gradient is written over them. Source of
the idea: Liger (https://arxiv.org/abs/2410.10989) and cut cross-entropy
(https://arxiv.org/abs/2411.09009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 1 << 28
"""Of the logits that live at a time."""
GPU_BLOCKS = 4
"""Parts of a chunk of logits that are made float32 one after another, off the CPU."""
_CACHE_NUMBERS = 1 << 17
"""Of one pass over some rows on a CPU: what is made on the way stays in its cache."""
_VOCAB_BLOCK = 1 << 14
"""Tokens of the head whose bf16 gradient is added to a float32 one at a time."""

TokenLoss = Callable[[slice, Tensor, Tensor, Tensor | None], Tensor]
"""Loss of some tokens from their log-probs (n,), entropies (n,) and hidden states (n, D) or None,
all with gradient; the slice says which tokens."""


@dataclass(frozen=True)
class LMHead:
    """An output head: logits = cap(scale * (hidden @ weight.T + bias)) / temperature.

    Args:
        weight: (V, D).
        bias: (V,) or None.
        softcap: logits are bent to stay within it (Gemma 2); None leaves them.
        temperature: the logits are divided by it.
        scale: the logits are multiplied by it, before the cap (Granite, Cohere).
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0
    scale: float = 1.0

    def logprobs(
        self, hidden: Tensor, targets: Tensor, entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the targets' log-probs and the entropies, in nats, both (N,) float32.

        Both have a gradient, for which the logits are computed again in the backward pass.

        Args:
            hidden: (N, D).
            targets: (N,).
            entropy: whether entropies are wanted; they are 0 otherwise.
        """
        bias = self.bias
        found: tuple[Tensor, Tensor] = _Recomputed.apply(  # type: ignore[no-untyped-call]
            self, entropy, targets, hidden, self.weight, bias
        )
        return found

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        token_loss: TokenLoss,
        parameters: Sequence[Tensor] = (),
        entropy_gradient: bool = False,
        pass_hidden: bool = False,
    ) -> Tensor:
        """Return the sum of a loss over tokens, its gradient computed on the way, in one pass.

        Args:
            hidden: (N, D).
            targets: (N,).
            token_loss: called once for each chunk of tokens; its results are added up.
            parameters: what else it has a gradient for, a value head's for instance.
            entropy_gradient: whether the entropies that it reads have a gradient.
            pass_hidden: whether it reads hidden states.
        """
        reads = (entropy_gradient, pass_hidden)
        loss: Tensor = _OnePass.apply(  # type: ignore[no-untyped-call]
            self, token_loss, reads, targets, hidden, self.weight, self.bias, *parameters
        )
        return loss

    def computing(self, hidden: Tensor) -> tuple[_Computing, Tensor]:
        """The head and the hidden states in the dtype of the matrix products."""
        device = hidden.device.type
        dtype = self.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        weight = self.weight.detach().to(dtype)
        head = _Computing(weight, bias, self.softcap, self.temperature, self.scale)
        return head, hidden.detach().to(dtype)


@dataclass
class _Computing:
    """A head without gradient, in the dtype that it computes in."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    temperature: float
    scale: float

    def chunks(self, count: int) -> Iterator[slice]:
        size = max(16, CHUNK_BYTES // (self.weight.shape[0] * self.weight.element_size()))
        for begin in range(0, count, size):
            yield slice(begin, min(begin + size, count))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) as the layer gives them, before scale, cap and temperature."""
        return F.linear(hidden, self.weight, self.bias)

    def _blocks(self, logits: Tensor) -> Iterator[slice]:
        rows, vocab = logits.shape
        size = (
            max(1, _CACHE_NUMBERS // vocab)
            if logits.device.type == "cpu"
            else max(1, rows // GPU_BLOCKS)
        )
        for begin in range(0, rows, size):
            yield slice(begin, begin + size)

    def _bent(self, logits: Tensor) -> Tensor:
        x = logits.float()
        if self.scale != 1.0:
            x = x * self.scale
        if self.softcap is not None:
            x = (x / self.softcap).tanh() * self.softcap
        return x / self.temperature if self.temperature != 1.0 else x

    def measure(
        self, logits: Tensor, targets: Tensor, entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, log normalisers and entropies, each (n,) float32."""
        logprobs, log_z, spread = (torch.zeros(len(logits), device=logits.device) for _ in range(3))
        for part in self._blocks(logits):
            x = self._bent(logits[part])
            top = x.amax(-1, keepdim=True)
            target = x.gather(-1, targets[part, None])[:, 0]
            p = (x - top).exp_()
            total = p.sum(-1)
            z = top[:, 0] + total.log()
            logprobs[part], log_z[part] = target - z, z
            if entropy:
                spread[part] = z - torch.linalg.vecdot(p, x) / total
        return logprobs, log_z, spread

    def write_gradient(
        self,
        logits: Tensor,
        targets: Tensor,
        log_z: Tensor,
        spread: Tensor,
        of_logprobs: Tensor,
        of_entropy: Tensor | None,
    ) -> Tensor:
        """Write d loss / d logits (n, V) over the logits.

        d logp / d x = onehot - p;  d entropy / d x = -p (x - log_z + entropy).
        """
        for part in self._blocks(logits):
            x = self._bent(logits[part])
            slope = None
            if self.softcap is not None:
                slope = 1 - (x * (self.temperature / self.softcap)).square()
            p = (x - log_z[part, None]).exp_()
            if of_entropy is None:
                change = p.mul_(-of_logprobs[part, None])
            else:
                shift = (spread - log_z)[part, None]
                factor = x.add_(shift).mul_(of_entropy[part, None]).add_(of_logprobs[part, None])
                change = p.mul_(factor).neg_()
            change.scatter_add_(1, targets[part, None], of_logprobs[part, None])
            if slope is not None:
                change.mul_(slope)
            if self.temperature != self.scale:
                change.mul_(self.scale / self.temperature)
            logits[part] = change.to(logits.dtype)
        return logits


class _Gradients:
    """Sums of the gradients of hidden states, weight and bias over chunks."""

    def __init__(self, hidden: Tensor, head: LMHead, wanted: Sequence[bool]) -> None:
        weight, bias = head.weight, head.bias
        self.hidden = torch.zeros_like(hidden) if wanted[0] else None
        single = torch.promote_types(weight.dtype, torch.float32)
        self.weight = weight.new_zeros(weight.shape, dtype=single) if wanted[1] else None
        self.bias = None
        if bias is not None and wanted[2]:
            self.bias = bias.new_zeros(bias.shape, dtype=single)

    def add(self, part: slice, change: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Add the gradients that follow from d loss / d logits (n, V) of a chunk."""
        if self.hidden is not None:
            self.hidden[part] = (change @ weight).to(self.hidden.dtype)
        if self.bias is not None:
            self.bias += change.sum(0)
        if self.weight is None:
            return
        if change.dtype == self.weight.dtype:
            self.weight.addmm_(change.T, hidden)
            return
        for begin in range(0, len(weight), _VOCAB_BLOCK):
            block = slice(begin, begin + _VOCAB_BLOCK)
            self.weight[block] += change[:, block].T @ hidden

    def scaled(self, factor: Tensor, head: LMHead) -> tuple[Tensor | None, ...]:
        """The three gradients times a scalar, in the dtypes of what they belong to."""
        if not bool(factor == 1):
            for value in (self.hidden, self.weight, self.bias):
                if value is not None:
                    value.mul_(factor)
        weight = None if self.weight is None else self.weight.to(head.weight.dtype)
        bias = None if self.bias is None or head.bias is None else self.bias.to(head.bias.dtype)
        return self.hidden, weight, bias


class _Recomputed(torch.autograd.Function):
    """Log-probs and entropies whose gradient computes the logits of each chunk again."""

    @staticmethod
    def forward(
        ctx: Any,
        head: LMHead,
        entropy: bool,
        targets: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See LMHead.logprobs."""
        computing, states = head.computing(hidden)
        found = torch.zeros(3, len(hidden), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in computing.chunks(len(hidden)):
                logits = computing.logits(states[part])
                found[:, part] = torch.stack(computing.measure(logits, targets[part], entropy))
        ctx.head, ctx.entropy = head, entropy
        ctx.computing = computing
        ctx.save_for_backward(targets, hidden, found)
        return found[0], found[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Compute each chunk's logits again and write their gradient over them."""
        targets, hidden, found = ctx.saved_tensors
        of_logprobs, of_entropy = gradients
        _, log_z, spread = found
        computing = ctx.computing
        states = hidden.to(computing.weight.dtype)
        sums = _Gradients(hidden, ctx.head, ctx.needs_input_grad[3:6])
        with torch.autocast(hidden.device.type, enabled=False):
            for part in computing.chunks(len(hidden)):
                change = computing.write_gradient(
                    computing.logits(states[part]),
                    targets[part],
                    log_z[part],
                    spread[part],
                    of_logprobs[part],
                    of_entropy[part] if ctx.entropy else None,
                )
                sums.add(part, change, states[part], computing.weight)
        return None, None, None, *sums.scaled(torch.ones(()), ctx.head)


class _OnePass(torch.autograd.Function):
    """A sum over tokens whose gradient is computed together with it, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        head: LMHead,
        token_loss: TokenLoss,
        reads: tuple[bool, bool],
        targets: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        """See LMHead.loss."""
        computing, states = head.computing(hidden)
        sums = _Gradients(hidden, head, ctx.needs_input_grad[4:7])
        others = [torch.zeros_like(p) for p in parameters]
        total = torch.zeros((), device=hidden.device)
        for part in computing.chunks(len(hidden)):
            with torch.autocast(hidden.device.type, enabled=False):
                logits = computing.logits(states[part])
                logprobs, log_z, entropy = computing.measure(logits, targets[part], entropy=True)
            seen = hidden[part].detach() if reads[1] else None
            loss, slopes, found = _slopes(
                lambda *x, part=part: token_loss(part, *x),
                (logprobs, entropy.clone(), seen),
                (True, *reads),
                parameters,
            )
            with torch.autocast(hidden.device.type, enabled=False):
                first = torch.zeros_like(logprobs) if slopes[0] is None else slopes[0]
                change = computing.write_gradient(
                    logits, targets[part], log_z, entropy, first, slopes[1]
                )
                sums.add(part, change, states[part], computing.weight)
            if slopes[2] is not None and sums.hidden is not None:
                sums.hidden[part] += slopes[2]
            for other, value in zip(others, found, strict=True):
                if value is not None:
                    other += value
            total += loss
        ctx.head, ctx.sums, ctx.others = head, sums, others
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Scale the gradients that forward has computed."""
        factor = gradients[0]
        sums, ctx.sums = ctx.sums, None  # so that the parameter may take it over as its gradient
        others = (other * factor for other in ctx.others)
        return (*(None,) * 4, *sums.scaled(factor, ctx.head), *others)


def _slopes(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor | None], Sequence[Tensor | None]]:
    """Value of a function, and its gradients for the wanted inputs and for the parameters."""
    leaves = [
        x.detach().requires_grad_() if wish and x is not None else x
        for x, wish in zip(inputs, wanted, strict=True)
    ]
    with torch.enable_grad():
        value = function(*leaves)
    asked = [x for x in leaves if x is not None and x.requires_grad]
    if not value.requires_grad:
        return value, [None] * len(leaves), [None] * len(parameters)
    found = list(torch.autograd.grad(value, [*asked, *parameters], allow_unused=True))
    of_inputs = [found.pop(0) if x is not None and x.requires_grad else None for x in leaves]
    return value.detach(), of_inputs, found

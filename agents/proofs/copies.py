"""The proof that a copy of a model is the model: one to sample from, or one read back from disk.

An adapter that was left out shows little while it is small, and nothing before its first update.
So merging is tried once with adapters as large as the weights beside them, layer by layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from research_rl.agents.kernels import parameters_of
from research_rl.agents.proofs.claim import strayed

log = logging.getLogger(__name__)
_LENGTH = 24
"""Tokens of each of the two texts."""
_LOST = 0.1
"""Part of a layer's output that rounding does not explain."""
_NATS = {"full": 1e-3, "elsewhere": 1e-2, "low": 0.25}
"""Mean distance of log-probs that rounding explains: of float32, of float32 on two kinds of device,
and of half precision."""


class CopyError(ValueError):
    """A copy of a model computes something else than the model."""


@torch.no_grad()
def text_logprobs(model: Any) -> Tensor:
    """Log-probs (2, 23) in nats of the tokens of two texts, on the host.

    Args:
        model: a causal language model, in evaluation mode.
    """
    embedded = model.get_input_embeddings().weight
    ids = torch.arange(2 * _LENGTH, device=embedded.device).view(2, -1) * 11 % embedded.shape[0]
    with torch.autocast(ids.device.type, enabled=False):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    found: Tensor = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return found.cpu()


def prove_copy(model: Any, copy: Any, what: str, instead: str) -> None:
    """Compare the log-probs of two texts.

    Args:
        model: a causal language model, in evaluation mode.
        copy: of it, perhaps in another dtype.
        what: the copy is, e.g. "the copy to sample from".
        instead: what to do if they differ.

    Raises:
        CopyError: they differ by more than rounding.
    """
    theirs, ours = text_logprobs(model), text_logprobs(copy)
    if not bool(theirs.isfinite().all()):
        log.warning("%s is taken unproved: the policy's log-probs are not finite", what)
        return
    first = [next(m.parameters()) for m in (model, copy)]
    kind = "full" if first[0].device.type == first[1].device.type else "elsewhere"
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in first):
        kind = "low"
    gap, most = float((ours - theirs).abs().mean()), _NATS[kind]
    if not gap <= most:
        raise CopyError(
            f"{what} must compute what the policy does, got log-probs that differ by {gap:.3g} "
            f"nats on average where rounding explains {most:g}; {instead}"
        )


@torch.no_grad()
def prove_merge(
    model: Any, names: Sequence[str], merged: Callable[[], Any], dtype: torch.dtype, instead: str
) -> None:
    """Compare each layer that has adapters with the same layer of a copy, adapters merged.

    All adapters are of the size of the weights beside them meanwhile.

    Args:
        model: a causal language model below the wrapper of peft, in evaluation mode.
        names: of its layers with adapters.
        merged: makes a copy of the model as it is.
        dtype: of the copy.
        instead: what to do if they differ.

    Raises:
        CopyError: naming the layers whose copies differ.
    """
    calls: dict[str, tuple[Any, Any, Any]] = {}

    def keeps(name: str) -> Callable[..., None]:
        def keep(module: Any, args: Any, kwargs: Any, out: Any) -> None:
            calls[name] = (args, kwargs, out)

        return keep

    with magnified(model, names), ExitStack() as hooks:
        for name in names:
            layer = model.get_submodule(name)
            hooks.enter_context(
                _removed(layer.register_forward_hook(keeps(name), with_kwargs=True))
            )
        text_logprobs(model)
        copy = merged()
    lost = []
    for name, (args, kwargs, theirs) in calls.items():
        ours = copy.get_submodule(name)(
            *(_cast(x, dtype) for x in args), **{k: _cast(x, dtype) for k, x in kwargs.items()}
        )
        if not float(strayed(_numbers(ours), _numbers(theirs))) <= _LOST:
            lost.append(name)
    if lost:
        raise CopyError(
            f"a copy must have the adapters of all layers merged, got {len(lost)} of {len(names)} "
            f"where they are not: {', '.join(lost[:8])}{', ...' if len(lost) > 8 else ''}; "
            f"{instead}"
        )


@contextmanager
def magnified(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Inside, adapters are random and about as large as the weights beside them.

    Args:
        model: below the wrapper of peft.
        names: of its layers with adapters.
    """
    draw = torch.Generator().manual_seed(0)
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for held in (held for name in names for held in _adapters(model.get_submodule(name))):
            for module in held.modules():
                slots = parameters_of(module)
                for name, weight in list(slots.items()):
                    if weight is not None:
                        random = torch.randn(weight.shape, generator=draw)
                        random = (random / weight.shape[-1] ** 0.5).to(weight)
                        swapped.append((slots, name, weight))
                        slots[name] = nn.Parameter(random, requires_grad=False)
        yield
    finally:
        for slots, name, weight in swapped:
            slots[name] = weight


def _adapters(layer: nn.Module) -> Iterator[nn.Module]:
    """What holds the weights of a layer's adapters, those inside of other ones included."""
    for module in layer.modules():
        kinds = getattr(module, "adapter_layer_names", ())
        held = (getattr(module, kind, None) for kind in kinds)
        yield from (found for found in held if isinstance(found, nn.Module))


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _numbers(out: Any) -> Tensor:
    """All floating-point numbers (1, n) that a layer returns; a router returns several tensors."""
    parts = out if isinstance(out, tuple | list) else (out,)
    return torch.cat([x.float().flatten() for x in parts if x.is_floating_point()])[None]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

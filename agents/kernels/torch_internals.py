"""Private parts of torch and transformers that this package uses, all of them in this module.

Seen with torch 2.13.0 and transformers 5.23.0. Each function says why no public way serves, and has
a test that fails by name where an upgrade takes its part away or changes it. Where torch lacks a
part that only makes something quicker, a warning says so once and public operations take its place.

Those that make something quicker do so on a CPU: norms through weight normalisation, weights laid
out once for the matrix unit, the gradient of attention by plain products. A GPU gains nothing from
them. ``RESEARCH_PLAIN_KERNELS=1`` turns them off, on any device, and the decoder of this package as
well: every layer is then computed by the model's own modules.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_state

log = logging.getLogger(__name__)

PLAIN_KERNELS = "RESEARCH_PLAIN_KERNELS"
"""Environment variable: "1" leaves everything to models' modules and public operations."""
SEEN_TORCH = "2.13.0"
"""The version of torch with which all of this was seen to work."""
UNCHANGED: tuple[str, list[Any], str] = ("none", [], "")
"""What a packed product shall do to its result."""
_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def plain_kernels() -> bool:
    """Return whether the kernels of this package are turned off."""
    return os.environ.get(PLAIN_KERNELS, "0") not in ("", "0")


@cache
def _has(name: str, instead: str) -> bool:
    """Whether torch has a part; if not, that is said once, with what happens instead."""
    try:
        reduce(getattr, name.split("."), torch)
    except AttributeError:
        log.warning(
            "torch %s lacks torch.%s: %s; torch==%s has it",
            torch.__version__,
            name,
            instead,
            SEEN_TORCH,
        )
        return False
    return True


def has_length_kernel() -> bool:
    """Return whether ``over_lengths`` and its gradient may be used."""
    instead = "norms on a CPU are computed by torch's rms_norm, which is slower"
    names = ("_weight_norm_interface", "ops.aten._weight_norm_interface_backward")
    return not plain_kernels() and all(_has(name, instead) for name in names)


def over_lengths(rows: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, D) scaled to lengths (n, 1), and the lengths (n, 1) that they had; n is not 0.

    Weight normalisation is the one kernel on a CPU that does this at once; the public
    ``parametrizations.weight_norm`` wants a module.
    """
    return torch._weight_norm_interface(rows, length, 0)


def over_lengths_backward(change: Tensor, rows: Tensor, length: Tensor, had: Tensor) -> Tensor:
    """The gradient (n, D) of the rows of ``over_lengths``, which had the lengths ``had``."""
    backward: Any = torch.ops.aten._weight_norm_interface_backward
    found: Tensor = backward(change, rows, length, had, 0)[0]
    return found


def softmax_backward(change: Tensor, weights: Tensor) -> Tensor:
    """The gradient of scores whose softmax over the last dimension is ``weights``, in one pass.

    Autograd would do this, but keeps scores that are cheap to compute again.
    """
    if _has("_softmax_backward_data", "the gradient of attention takes more operations"):
        return torch._softmax_backward_data(change, weights, -1, weights.dtype)
    return weights * (change - (change * weights).sum(-1, keepdim=True))


def silu_backward(change: Tensor, x: Tensor) -> Tensor:
    """The gradient of x whose silu has the gradient ``change``; as softmax_backward."""
    if _has("ops.aten.silu_backward", "the gradient of a gate takes more operations"):
        found: Tensor = torch.ops.aten.silu_backward(change, x)
        return found
    share = x.sigmoid()
    return change * share * (1 + x * (1 - share))


def can_pack() -> bool:
    """Return whether weights may be packed: on a CPU whose torch computes bfloat16 by oneDNN.

    ``torch.utils.mkldnn`` is public, but converts every input and every result.
    """
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if plain_kernels() or not built:
        return False
    instead = "bfloat16 weights are not packed, and sampling on a CPU is slower"
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(_has(f"ops.mkldnn.{name}", instead) for name in names):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_weight(weight: Tensor) -> Tensor:
    """A bfloat16 weight (out, in) as the matrix unit reads it; it cannot be read back."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return found


def packed_product() -> Callable[..., Tensor]:
    """The function from x (..., in), a packed weight, a bias and ``*UNCHANGED`` to (..., out)."""
    found: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return found


def is_untouched(module: nn.Module) -> bool:
    """Return whether a module computes its ``forward`` and nothing else: no hooks, not compiled.

    torch registers hooks and compiles, but shows neither. Where it keeps them elsewhere than it
    did, no module is untouched.
    """
    if not _has("nn.Module._compiled_call_impl", "layers are left to the model's own modules"):
        return False
    hooks = (vars(module).get(f"_{kind}", True) for kind in _HOOKS)
    return not any(hooks) and module._compiled_call_impl is None


def has_global_hooks() -> bool:
    """Return whether hooks are registered for every module of the process."""
    return any(getattr(global_state, f"_global_{kind}", True) for kind in _HOOKS)


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """The parameters of a module itself, in the dictionary that it reads them from.

    Other tensors may stand in for them there for a while. A module's ``__setattr__`` refuses that,
    and ``torch.func.functional_call`` does it for one call alone.
    """
    return module._parameters


@contextmanager
def attention_replaced(model: nn.Module, name: str) -> Iterator[None]:
    """In this block the model uses the attention registered under a name; then its own again.

    ``set_attn_implementation`` is public, but only warns where a model does not follow it, and
    nothing public says what a model had before.

    Args:
        model: of transformers.
        name: in ``transformers.AttentionInterface``.
    """
    configs: dict[int, Any] = {
        id(config): config
        for module in model.modules()
        if hasattr(config := getattr(module, "config", None), "_attn_implementation")
    }
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own


def unsplit_modules(model: nn.Module) -> set[str]:
    """Names of the classes that a transformers model must keep whole: those of its layers.

    Nothing public says which modules are layers.
    """
    named = (getattr(module, "_no_split_modules", None) or () for module in model.modules())
    return {name for some in named for name in some}

"""Products in half precision on CUDA devices and CPUs, with bounds of their rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ProductDtype = Literal["auto", "bfloat16", "float16", "float32"]


def pick_devices(device: str | Sequence[str]) -> list[torch.device]:
    """Return the devices that are meant; "auto" is the first CUDA device, or else the CPU.

    Raises:
        ValueError: torch does not see one of them.
    """
    import torch

    count = torch.cuda.device_count()
    names = [device] if isinstance(device, str) else list(device)
    if not names:
        raise ValueError("device must name at least one device, got an empty list")
    chosen = []
    for name in names:
        kind, _, index = name.replace("auto", "cuda" if count else "cpu").partition(":")
        there = kind == "cpu" or (kind == "cuda" and (not index or index.isdecimal()))
        if not there or (kind == "cuda" and int(index or 0) >= count):
            raise ValueError(
                f"device must be cpu or one of the {count} CUDA devices that torch sees, got "
                f"{name!r}; use device='cpu', or install a torch with CUDA on a machine with an "
                "NVIDIA GPU"
            )
        chosen.append(torch.device(kind, int(index or 0)))
    return chosen


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a scan; "auto" is float16 on CUDA and bfloat16 on a CPU.

    Raises:
        ValueError: no such dtype.
    """
    import torch

    if name not in get_args(ProductDtype):
        raise ValueError(f"dtype must be one of {', '.join(get_args(ProductDtype))}, got {name!r}")
    if name == "auto":
        name = "float16" if device.type == "cuda" else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def check_room(device: torch.device, need: float) -> None:
    """Refuse a CUDA device that has fewer than ``need`` bytes free.

    Raises:
        ValueError: it has fewer.
    """
    import torch

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else need
    if need > free:
        raise ValueError(
            f"{device} must have {need / 2**30:.1f} GiB free for the vectors, got "
            f"{free / 2**30:.1f} GiB; use dtype float16, name several devices, or build a "
            "compressed index with --type ivf-sq8"
        )


def product(queries: Tensor, vectors: Tensor) -> Tensor:
    """Return inner products (Q, n) in float32 of (Q, D) and (n, D), summed in float32."""
    import torch

    if widened(queries):
        return queries.float() @ vectors.float().T  # a CPU's own float16 products are slow
    if queries.dtype != torch.float32 and _keeps_float32(queries.device):
        return torch.mm(queries, vectors.T, out_dtype=torch.float32)
    return (queries @ vectors.T).float()


def widened(queries: Tensor) -> int:
    """Return how many numbers of each vector ``product`` copies in float32: all, or none."""
    half_on_cpu = str(queries.dtype) == "torch.float16" and queries.device.type == "cpu"
    return queries.shape[1] if half_on_cpu else 0


def output_rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Return the relative error of results because they are stored in half precision."""
    import torch

    half = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 0.0)
    if device.type == "cuda":  # partial sums may be rounded as well
        return 0.0 if _keeps_float32(device) else 8 * half
    return half if dtype == torch.bfloat16 else 0.0


def input_rounding(dtype: torch.dtype) -> float:
    """Return the relative error of float32 products where torch may shorten their factors.

    That is TF32 on CUDA or bfloat16 on a CPU, after ``torch.set_float32_matmul_precision``.
    """
    import torch

    if dtype != torch.float32:
        return 0.0
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set in another way, and torch will not say how
        exact = False
    return 0.0 if exact else 2.0**-7


def merge(parts: Sequence[tuple[Tensor, Tensor]], width: int) -> tuple[Tensor, Tensor]:
    """Return the best ``width`` of several scores and positions, each (Q, some)."""
    import torch

    if len(parts) == 1:
        return parts[0]
    scores = torch.cat([scores for scores, _ in parts], dim=1)
    places = torch.cat([places for _, places in parts], dim=1)
    values, columns = scores.topk(min(width, scores.shape[1]), dim=1)
    return values, places.gather(1, columns)


def _keeps_float32(device: torch.device) -> bool:
    """Return whether half precision multiplies into float32 there: CUDA, from torch 2.8 on."""
    import torch

    version = tuple(map(int, torch.__version__.split(".")[:2]))
    return device.type == "cuda" and version >= (2, 8)

"""What the machine is quick at: the dtype to compute in, and how a decode step attends.

    >>> from research_rl.agents.machine import fast_dtype
    >>> fast_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
    True

A choice that changes numbers follows from what the processor says it can do, never from a clock: a
run that is resumed on the same machine computes as before. ``product_rate`` measures, to tell what
a choice costs. ``RESEARCH_CPU`` names the abilities instead of the processor, e.g. ``amx_bf16``,
or ``none``.
"""

from __future__ import annotations

import logging
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

CPU_VARIABLE = "RESEARCH_CPU"
"""Environment variable with the CPU's abilities, separated by commas; without it they are asked."""
_ABILITIES = ("avx512_bf16", "amx_bf16")
_SLOW = 2.0
"""How many times slower than in float32 a product must be for a warning."""
_SECONDS = 0.004
"""Time of one measurement."""
_SHAPE = (64, 576, 256)
"""Rows, inner size and columns of the products that are timed."""


def cpu_abilities() -> frozenset[str]:
    """Return which instructions for bfloat16 the CPU has: ``avx512_bf16``, ``amx_bf16``.

    Raises:
        ValueError: ``RESEARCH_CPU`` names something else.
    """
    return _abilities(os.environ.get(CPU_VARIABLE))


@cache
def _abilities(told: str | None) -> frozenset[str]:
    if told is not None:
        names = [name.strip() for name in told.split(",") if name.strip() not in ("", "none")]
        if unknown := [name for name in names if name not in _ABILITIES]:
            raise ValueError(
                f"{CPU_VARIABLE} must name some of {', '.join(_ABILITIES)}, or none; got "
                f"{unknown[0]!r}"
            )
        return frozenset(names)
    ask = getattr(torch.cpu, "get_capabilities", None)  # torch >= 2.13
    known: dict[str, Any] = ask() if ask else dict.fromkeys(_flags(), True)
    return frozenset(name for name in _ABILITIES if known.get(name))


def _flags() -> list[str]:
    """What Linux says that the CPU has; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return next((line.split() for line in text.splitlines() if line.startswith("flags")), [])


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which a device multiplies matrices fastest: bfloat16 or float32."""
    if device.type == "cpu":
        return torch.bfloat16 if cpu_abilities() else torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return torch.bfloat16


def chosen_dtype(name: str | None, device: torch.device, option: str) -> torch.dtype | None:
    """Return the dtype that an option means on a device; None is the weights' own.

    ``auto`` is ``fast_dtype``. What was chosen is logged once, and so is a warning if it is far
    slower than float32 there.

    Args:
        name: float32, bfloat16, float16, auto or None.
        device: where it is computed.
        option: what the user calls it, for the log.

    Raises:
        ValueError: there is no dtype of this name.
    """
    if name is None:
        return None
    dtype = dtype_of(name) or fast_dtype(device)
    if name == "auto":
        _tell(f"{option}: auto is {_name(dtype)} on {describe(device)}")
    warn_if_slow(dtype, device, option)
    return dtype


def dtype_of(name: str) -> torch.dtype | None:
    """Return the dtype of a name; None for ``auto``.

    Raises:
        ValueError: there is none of this name.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name != "auto" and name not in known:
        raise ValueError(
            f"dtype must be {', '.join(known)}, auto or null, got {name!r}; choose one"
        )
    return known.get(name)


def warn_if_slow(dtype: torch.dtype, device: torch.device, option: str) -> None:
    """Warn, once, if the device multiplies matrices of a dtype far slower than of float32.

    Args:
        dtype: that was chosen.
        device: only a CPU is asked.
        option: that chose it; the warning names it.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return
    if dtype == fast_dtype(device):
        return
    times = product_rate(torch.float32) / product_rate(dtype)
    if times > _SLOW:
        _warn(
            f"{option}: {_name(dtype)} is about {times:.0f} times slower than float32 on "
            f"{describe(device)}; set it to auto, or leave it out"
        )


@cache
def product_rate(dtype: torch.dtype) -> float:
    """Return how many floating-point operations a second one thread does in products of a dtype.

    Measured on the CPU for a few milliseconds, once in a process. A multiplication and an addition
    count as two.
    """
    rows, inner, columns = _SHAPE
    a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a @ b  # the first call prepares
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < _SECONDS:
            a @ b
            done += 1
    finally:
        torch.set_num_threads(threads)
    return 2.0 * rows * inner * columns * done / spent


def fused_decode(queries: int) -> bool:
    """Return whether a CPU attends in bfloat16 faster by its fused kernel, one query a sequence.

    With AMX it does while few query heads share a key head. Without it, products of matrices are 3
    to 20 times faster (benchmarks/pieces.py).

    Args:
        queries: heads that share a key head.
    """
    return queries <= 2 and "amx_bf16" in cpu_abilities()


def describe(device: torch.device) -> str:
    """Return what a choice rests on, e.g. ``a CPU with avx512_bf16 and no amx_bf16``."""
    if device.type != "cpu":
        return device.type
    have = cpu_abilities()
    told = [f"{'' if name in have else 'no '}{name}" for name in _ABILITIES]
    return f"a CPU with {' and '.join(told)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _tell(text: str) -> None:
    log.info(text)


@cache
def _warn(text: str) -> None:
    log.warning(text)

"""The command ``research env``: versions, machine and extras for a bug report, and no secrets.

Of environment variables only the names of those that change what is computed are told; the values
of a few that hold no secret are, too.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from research_rl.envs.system import CommandLine, printable, printable_json

_PACKAGE = "research-rl"
_ALWAYS = ("torch", "transformers", "pytorch-lightning", "jsonargparse", "gymnasium", "numpy")
_SHOWN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")
"""Variables whose values are told: numbers and switches."""
_TOLD = (
    "RESEARCH_",
    "CUDA_",
    "NCCL_",
    "PYTORCH_",
    "TORCH_",
    "HF_",
    "TRANSFORMERS_",
    "OMP_",
    "MKL_",
)
"""Beginnings of the names of variables that are told to be set, without their values."""


def main(args: Sequence[str]) -> None:
    """Run ``research env`` with these arguments."""
    parser = CommandLine(
        prog="research env",
        description="Print versions, machine and extras for a bug report. No values of keys, no "
        "user or host names, no paths are in it.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="leave the devices of torch out")
    given = parser.parse_args(args)
    facts = surroundings(devices=not given.quick)
    if given.json:
        print(printable_json(json.dumps(facts, ensure_ascii=False)))
        return
    for section, values in facts.items():
        print(section)
        for name, value in values.items():
            print(printable(f"  {name:<24} {value}".rstrip()))


def surroundings(devices: bool = True) -> dict[str, dict[str, Any]]:
    """Return what a bug report should say, in sections.

    Args:
        devices: also the accelerators, for which torch is imported.
    """
    return {
        "versions": _versions(),
        "extras": _extras(),
        "machine": _machine() | (_devices() if devices else {}),
        "variables": _variables(os.environ),
    }


def _versions() -> dict[str, str]:
    own = {_PACKAGE: _version(_PACKAGE), "python": platform.python_version()}
    return own | {name: _version(name) for name in _ALWAYS}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _extras() -> dict[str, str]:
    """Each extra with the versions of its packages, or what is missing of it."""
    try:
        names = metadata(_PACKAGE).get_all("Provides-Extra") or []
        needed = requires(_PACKAGE) or []
    except PackageNotFoundError:
        return {}
    found = {}
    for extra in names:
        wanted = [n for n in needed if f'extra == "{extra}"' in n or f"extra == '{extra}'" in n]
        packages = [_name_of(requirement) for requirement in wanted]
        have = {name: _version(name) for name in dict.fromkeys(packages)}
        missing = [name for name, its in have.items() if its == "not installed"]
        said = ", ".join(f"{name} {its}" for name, its in have.items())
        found[extra] = f"missing {', '.join(missing)}" if missing else said
    return found


def _name_of(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if c in " ;<>=!~[("), len(requirement))
    return requirement[:end]


def _machine() -> dict[str, Any]:
    free = shutil.disk_usage(Path.cwd()).free
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": _memory(),
        "free disk here": f"{free / 2**30:.1f} GiB",
        "terminal": sys.stdout.isatty() if sys.stdout is not None else False,
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor() or "unknown"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    found = {k.strip(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    able = sorted(wanted & set(found.get("flags", "").split()))
    return f"{found.get('model name', 'unknown')} ({', '.join(able) or 'no AVX2'})"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _devices() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"devices": f"torch cannot be imported: {error}"}
    facts: dict[str, Any] = {"CUDA of torch": torch.version.cuda or "none"}
    for place in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(place)
        facts[f"device {place}"] = f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    facts["threads of torch"] = torch.get_num_threads()
    return facts


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    names = sorted(name for name in environment if name.startswith(_TOLD) or name in _SHOWN)
    return {name: environment[name][:40] if name in _SHOWN else "set" for name in names}

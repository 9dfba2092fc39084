"""``research plan``: memory and time of a configuration before anything starts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from research_rl.envs.retrieval.estimate import duration, parse_size, size
from research_rl.trainers.plan_memory import Memory, Remedy, memory_of, remedies
from research_rl.trainers.plan_sizes import Sizes, sizes_of
from research_rl.trainers.plan_time import DEVICES, Device, seconds_of, this_cpu
from research_rl.trainers.usage import UsageError

_SPARE = {"cpu": 0.0, "gpu": 0.08}
"""Share of a device's memory that is kept free: CUDA's own, and what allocation splits up."""


@dataclass(frozen=True)
class Plan:
    """What a configuration takes.

    Args:
        sizes: what it was computed from.
        device: one of them.
        room: bytes of it that may be used.
        memory: by part.
        seconds: of an iteration, by phase.
        remedies: what lowers the peak; empty where it fits.
    """

    sizes: Sizes
    device: Device
    room: int
    memory: Memory
    seconds: dict[str, float]
    remedies: list[Remedy]

    @property
    def fits(self) -> bool:
        """Whether the peak is within the room."""
        return self.memory.peak <= self.room


def make_plan(sizes: Sizes, device: Device) -> Plan:
    """Return the plan of a configuration on such devices."""
    on_cpu = device.name == "cpu"
    room = int(device.memory * (1 - _SPARE["cpu" if on_cpu else "gpu"]))
    memory = memory_of(sizes, on_cpu)
    found = remedies(sizes, room, on_cpu) if memory.peak > room else []
    return Plan(sizes, device, room, memory, seconds_of(sizes, device), found)


def main(args: Sequence[str]) -> None:
    """Run ``research plan`` with these arguments."""
    own, rest = _parser().parse_known_args(args)
    if not any(arg.startswith(("-c", "--config")) for arg in rest):
        raise UsageError("a plan must have a config, got none; try --config quickstart")
    config = parsed(rest)
    ranks = own.devices * own.nodes if own.devices else _ranks(config["trainer"])
    sizes = sizes_of(config, ranks)
    response = own.response_tokens or sizes.response
    sizes = replace(
        sizes,
        prompt=own.prompt_tokens,
        response=own.longest_tokens or sizes.response,
        mean_response=min(response, sizes.response),
        sampled=own.sampled_share,
    )
    plan = make_plan(sizes, _device(own.device, own.device_memory, config["trainer"]))
    print(as_json(plan) if own.json else as_table(plan))


def parsed(args: Sequence[str]) -> dict[str, Any]:
    """Return the config that ``research fit`` would have with these arguments.

    Raises:
        SystemExit: there is a mistake in it (status 2, the reason on stderr).
    """
    from research_rl.trainers.lightning_cli import ResearchCLI, run

    class Parse(ResearchCLI):
        """Stops before anything is made."""

        def _set_seed(self) -> None:
            """Sow nothing."""

        def before_instantiate_classes(self) -> None:
            """Look at nothing on the disk."""

        def instantiate_classes(self) -> None:
            """Make nothing."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

    given = sys.argv
    sys.argv = ["research", "fit", *args]  # Lightning warns of arguments from anywhere else
    try:
        cli: Any = run(cli=Parse)
    finally:
        sys.argv = given
    found: dict[str, Any] = cli.config["fit"].as_dict()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="research plan",
        description="Memory and time of a configuration. All options of `research fit` are taken.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", choices=[*DEVICES, "cpu"], help="default: what is here")
    parser.add_argument("--devices", type=_positive, help="of each node; default trainer.devices")
    parser.add_argument("--nodes", type=_positive, default=1, help="default 1")
    parser.add_argument("--device-memory", type=parse_size, help="of one device, 80GB for instance")
    parser.add_argument("--prompt-tokens", type=_positive, default=400, help="default 400")
    parser.add_argument(
        "--longest-tokens",
        type=_positive,
        help="of the longest response; default sampling.max_response_tokens",
    )
    parser.add_argument(
        "--response-tokens", type=_positive, help="of a response on average, for the time"
    )
    parser.add_argument(
        "--sampled-share",
        type=float,
        default=0.4,
        help="of a response that is not search results; default 0.4",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _ranks(trainer: dict[str, Any]) -> int:
    devices = trainer.get("devices")
    nodes = int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list):
        return nodes * len(devices)
    if str(devices).isdigit():
        return nodes * max(1, int(str(devices)))
    return nodes * max(1, torch.cuda.device_count())


def _device(name: str | None, memory: int | None, trainer: dict[str, Any]) -> Device:
    here = torch.cuda.is_available() and trainer.get("accelerator") != "cpu"
    if name is None and here:
        properties = torch.cuda.get_device_properties(0)
        name = next((n for n in DEVICES if n in properties.name.lower()), "h100")
        memory = memory or properties.total_memory
    if name is None or name == "cpu":
        return this_cpu(memory or _main_memory())
    return replace(DEVICES[name], memory=memory) if memory else DEVICES[name]


def _main_memory() -> int:
    file = Path("/proc/meminfo")
    if not file.is_file():
        raise UsageError("this system does not tell its memory; name it with --device-memory")
    return 1024 * int(file.read_text(encoding="ascii").split("MemTotal:")[1].split()[0])


def as_json(plan: Plan) -> str:
    """Return the plan as JSON: bytes and seconds."""
    found = asdict(plan) | {
        "fits": plan.fits,
        "peak": plan.memory.peak,
        "phases": plan.memory.phases,
        "iteration_seconds": sum(plan.seconds.values()),
    }
    return json.dumps(found, indent=2)


def as_table(plan: Plan) -> str:
    """Return the plan for people."""
    sizes, device = plan.sizes, plan.device
    trained = "all trained" if sizes.trainable == sizes.weights else f"{_count(sizes.trainable)}"
    how = "in shards (FSDP2)" if sizes.sharded else "one copy each"
    lines = [
        f"model      {_count(sizes.weights)} weights in {sizes.dtype}, {trained}"
        + ("" if trained == "all trained" else " trained"),
        f"devices    {sizes.ranks} x {device.name} of {size(device.memory)}, {how}",
        f"iteration  {sizes.questions} questions x {sizes.group} rollouts, prompt "
        f"{sizes.prompt} + at most {sizes.response} tokens",
        "",
        f"{'memory of one device':<34}{'rollouts':>12}{'update':>12}",
    ]
    memory = plan.memory
    for name, value in memory.held.items():
        lines.append(f"  {name:<32}{size(value):>12}{size(value):>12}")
    for name, value in memory.rollout.items():
        lines.append(f"  {name:<32}{size(value):>12}{'':>12}")
    for name, value in memory.update.items():
        lines.append(f"  {name:<32}{'':>12}{size(value):>12}")
    phases = memory.phases
    lines.append(f"  {'peak':<32}{size(phases['rollout']):>12}{size(phases['update']):>12}")
    lines += ["", _verdict(plan)]
    for remedy in plan.remedies:
        ends = "fits" if remedy.fits else "does not fit yet"
        lines.append(f"  {size(remedy.peak):>10}  {ends:<18}{remedy.option}")
    index = "not built yet, not counted" if sizes.index is None else size(sizes.index)
    lines += ["", f"main memory, besides: search index {index}"]
    total = sum(plan.seconds.values())
    parts = ", ".join(f"{name} {duration(value)}" for name, value in plan.seconds.items())
    lines.append(f"an iteration, by arithmetic: {duration(total)} ({parts}); searches not counted")
    return "\n".join(lines)


def _verdict(plan: Plan) -> str:
    if plan.fits:
        return f"fits: {size(plan.memory.peak)} of {size(plan.room)} that may be used"
    if not plan.remedies:
        return (
            f"does not fit: {size(plan.memory.peak)} and {size(plan.room)} may be used; no option "
            "lowers it: take shorter responses or a smaller model"
        )
    return (
        f"does not fit: {size(plan.memory.peak)} and {size(plan.room)} may be used; what would "
        "lower it, each alone:"
    )


def _count(number: int) -> str:
    for power, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= power:
            return f"{number / power:.2f} {unit}"
    return str(number)

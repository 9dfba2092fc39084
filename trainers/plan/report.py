"""The report of a plan: a table for people, or JSON for programs.

A plan that does not fit lists the options that lower its peak, those that are enough first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from research_rl.envs.retrieval.index import duration, size
from research_rl.trainers.plan.memory import (
    Memory,
    Remedy,
    memory_of,
    remedies,
    smaller_iterations,
)
from research_rl.trainers.plan.seconds import DEVICES, Device, phase_seconds
from research_rl.trainers.plan.sizes import Sizes

_SPARE = {"cpu": 0.0, "gpu": 0.08}
"""Share of a device's memory that is kept free: CUDA's own, and what allocation splits up."""

_LONG = 60.0
"""Seconds of an iteration on a processor from which on the plan says what would shorten it."""
_USELESS = 2 * 86400.0
"""Seconds of an iteration from which on nobody would wait for it."""


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
    return Plan(sizes, device, room, memory, phase_seconds(sizes, device), found)


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
    lines.append(f"an iteration, by arithmetic: {_time(plan)}")
    if device.said:
        lines.append(f"  {device.said}")
    if shorter := _shorter(plan):
        lines.append(f"  shorter: {shorter}")
    return "\n".join(lines)


def _time(plan: Plan) -> str:
    total = sum(plan.seconds.values())
    if total > _USELESS:
        return (
            f"{total / 86400:,.0f} days, too slow to be of use on this device; "
            f"--device {' or '.join(DEVICES)} plans for another"
        )
    parts = ", ".join(f"{name} {duration(value)}" for name, value in plan.seconds.items())
    return f"{duration(total)} ({parts}); searches not counted"


def _shorter(plan: Plan) -> str:
    """What would make a long iteration on a processor shorter, each alone, and how short."""
    total = sum(plan.seconds.values())
    if plan.device.decode_flops is None or total < _LONG:
        return ""
    found = []
    for option, other in smaller_iterations(plan.sizes):
        less = sum(phase_seconds(other, plan.device).values())
        if less < total:
            found.append(f"{option} ({duration(less)})")
    return ", ".join(found)


def _verdict(plan: Plan) -> str:
    if plan.fits:
        return f"fits: {size(plan.memory.peak)} of {size(plan.room)} that may be used"
    if not plan.remedies:
        return (
            f"does not fit: {size(plan.memory.peak)} are needed and {size(plan.room)} may be used; "
            "no option lowers it: take shorter responses or a smaller model"
        )
    return (
        f"does not fit: {size(plan.memory.peak)} are needed and {size(plan.room)} may be used; "
        "what would lower it, each alone:"
    )


def _count(number: int) -> str:
    for power, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= power:
            return f"{number / power:.2f} {unit}"
    return str(number)

"""Where the bottleneck moves as servers, trainers and retrievers are added; arithmetic alone.

    python benchmarks/fleet.py                      # 7B, the table
    python benchmarks/fleet.py --size 32B --plot bottleneck.png

A closed queueing network with two kinds of stations: all rollouts of an iteration go round between
the servers, which decode together, and the retrievers, which answer one search at a time. It is
solved by exact mean value analysis (Reiser and Lavenberg, 1980); how many sequences share a decode
step, and so how long a turn takes, is found by iteration. Training follows, or runs beside it one
step behind. Speeds of a device are those of `research plan`; nothing was measured on a GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.trainers.plan.seconds import DECODE_SHARE, DEVICES, TRAIN_SHARE, Device
from research_rl.trainers.plan.sizes import Sizes, counted, qwen25


@dataclass(frozen=True)
class Fleet:
    """What a run has.

    Args:
        trainers: devices that learn.
        servers: devices that sample, a whole model each (or in a group that counts as one).
        retrievers: processes that search.
        search_s: seconds of one search.
        ahead: rollouts are sampled while the iteration before is learned from.
    """

    trainers: int
    servers: int
    retrievers: int
    search_s: float = 0.05
    ahead: bool = False


@dataclass(frozen=True)
class Step:
    """Seconds of one iteration."""

    rollout: float
    update: float
    total: float
    busy: dict[str, float]
    """Share of the iteration in which each kind of machine works."""

    @property
    def bottleneck(self) -> str:
        """The kind that works the largest share of the time."""
        return max(self.busy, key=lambda kind: self.busy[kind])


def mean_value_analysis(
    customers: int, rates: list[tuple[float, int]], delay: float
) -> tuple[float, list[float]]:
    """Rate of a closed network, visits a second, and how many customers are at each station.

    A station with m servers of service time s is taken for one of time s / m behind a delay of
    s (m - 1) / m (Seidmann et al., 1987).

    Args:
        customers: that go round.
        rates: (service seconds of a visit, number of servers) of each station.
        delay: seconds that a customer spends elsewhere in a round.
    """
    single = [seconds / servers for seconds, servers in rates]
    waits = delay + sum(s * (m - 1) / m for s, m in rates)
    queue = [0.0] * len(rates)
    rate = 0.0
    for n in range(1, customers + 1):
        stay = [s * (1 + q) for s, q in zip(single, queue, strict=True)]
        rate = n / (waits + sum(stay))
        queue = [rate * s for s in stay]
    return rate, queue


def turn_seconds(sizes: Sizes, device: Device, together: float, turns: float) -> float:
    """Seconds of a server that one turn of one sequence costs when so many decode together."""
    sampled = sizes.mean_response * sizes.sampled / turns
    context = sizes.prompt + sizes.mean_response / 2
    keys = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * sizes.samples
    bandwidth = device.bandwidth * DECODE_SHARE
    of_weights = sizes.weights * sizes.samples / max(together, 1.0)
    decode = sampled * (of_weights + context * keys) / bandwidth
    given = sizes.mean_response * (1 - sizes.sampled) / turns
    return decode + 2 * sizes.weights * given / (device.flops * TRAIN_SHARE)


def step(sizes: Sizes, device: Device, fleet: Fleet, turns: float = 4.0) -> Step:
    """Return what one iteration takes."""
    rollouts = sizes.questions * sizes.group
    slots = min(sizes.slots, max(1, rollouts // fleet.servers))
    searches = (turns - 1) / turns  # the last turn answers
    together = float(slots)
    for _ in range(20):  # how many decode together depends on how long the others wait, and back
        seconds = turn_seconds(sizes, device, together, turns)
        rate, queue = mean_value_analysis(
            slots * fleet.servers,
            [(seconds, fleet.servers), (fleet.search_s * searches, fleet.retrievers)],
            0.0,
        )
        together = 0.5 * together + 0.5 * max(1.0, queue[0] / fleet.servers)
    rollout = rollouts * turns / rate
    passes = (8 if sizes.checkpointing else 6) + (2 if sizes.has_reference else 0)
    tokens = rollouts * sizes.mean_response + sizes.questions * sizes.prompt
    update = passes * sizes.weights * tokens / (device.flops * TRAIN_SHARE * fleet.trainers)
    total = max(rollout, update) if fleet.ahead else rollout + update
    work = rollouts * turns
    busy = {
        "servers": work * seconds / fleet.servers / total,
        "retrievers": work * fleet.search_s * searches / fleet.retrievers / total,
        "trainers": update / total,
    }
    return Step(rollout, update, total, busy)


def table(sizes: Sizes, device: Device, fleets: list[Fleet]) -> str:
    """A row for each fleet."""
    lines = [
        "| trainers | rollout servers | retrievers | ahead | rollouts s | update s | iteration s "
        "| busy: servers, retrievers, trainers | bottleneck |",
        "|---" * 9 + "|",
    ]
    for fleet in fleets:
        found = step(sizes, device, fleet)
        busy = ", ".join(f"{share:.0%}" for share in found.busy.values())
        lines.append(
            f"| {fleet.trainers} | {fleet.servers} | {fleet.retrievers} | "
            f"{'yes' if fleet.ahead else 'no'} | {found.rollout:.0f} | {found.update:.0f} | "
            f"{found.total:.0f} | {busy} | {found.bottleneck} |"
        )
    return "\n".join(lines)


def plot(sizes: Sizes, device: Device, file: Path) -> None:
    """Draw the seconds of an iteration over the number of servers, for some retrievers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    servers = [1, 2, 4, 8, 16, 32]
    for retrievers in (1, 4, 16):
        steps = [step(sizes, device, Fleet(8, n, retrievers, ahead=True)).total for n in servers]
        axes.plot(servers, steps, marker="o", label=f"{retrievers} retrievers")
    axes.set(xscale="log", yscale="log", xlabel="rollout servers (8 trainers)")
    axes.set(ylabel="seconds of an iteration, simulated")
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="7B", help="of Qwen2.5; default 7B")
    parser.add_argument("--device", choices=DEVICES, default="h200")
    parser.add_argument("--search-ms", type=float, default=50.0, help="of one search, default 50")
    parser.add_argument("--plot", type=Path, help="also write a picture")
    args = parser.parse_args()
    sizes = replace(
        counted(PolicyConfig(args.size, dtype="bfloat16"), qwen25(args.size)),
        questions=256,
        response=8192,
        mean_response=3300,
        sampled=1200 / 3300,
        checkpointing=True,
    )
    device, search = DEVICES[args.device], args.search_ms / 1000
    sets = [(8, 1, 1), (8, 4, 1), (8, 8, 1), (8, 8, 4), (8, 16, 4), (8, 16, 16), (16, 16, 16)]
    sets += [(32, 16, 16), (32, 32, 32)]
    fleets = [Fleet(*s, search_s=search, ahead=a) for a in (False, True) for s in sets]
    print(table(sizes, device, fleets))
    if args.plot:
        plot(sizes, device, args.plot)


if __name__ == "__main__":
    main()

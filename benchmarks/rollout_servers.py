"""Train through two rollout servers, kill one in the middle, and compare with a run in process.

    python benchmarks/rollout_servers.py --out runs/servers --iterations 12

Both runs are the quickstart made small (see async_rollouts.py). One samples in its own process.
The other samples on two processes of ``research serve-policy``; one of them is killed (SIGKILL)
while it is sampling, and started again some iterations later with the weights that training began
with. The records of both runs are compared token by token; the exit status is 1 where the rewards
differ.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from async_rollouts import fit, rows, start_fit, write_config

from research_rl.trainers.recorder.records import Records

_TURNS = re.compile(r"research_rollout_turns_total (\d+)")


class Server:
    """One process of ``research serve-policy``."""

    def __init__(self, model: Path, port: int, log: Path) -> None:
        self.model, self.port, self.log = model, port, log
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return once it answers."""
        command = [sys.executable, "-m", "research_rl.trainers.cli", "serve-policy"]
        command += [str(self.model), "--served-model-name", "policy", "--port", str(self.port)]
        command += ["--weights-below", str(self.log.parent.resolve())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, "--threads", "1"], stdout=log, stderr=log)
        deadline = time.monotonic() + 600
        while self.turns() is None:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the server does not start; see {self.log}")
            time.sleep(0.2)

    def turns(self) -> int | None:
        """Return how many turns it has sampled; None where it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as reply:
                found = _TURNS.search(reply.read().decode())
        except OSError:
            return None
        return None if found is None else int(found[1])

    def end(self, number: int) -> None:
        """Send a signal and wait for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait()


def learned(folder: Path) -> int:
    """Return the iterations that a run has learned from so far."""
    return sum("train/loss" in row for row in rows(folder))


def train_on_servers(folder: Path, first: Path, iterations: int, servers: list[Server]) -> None:
    """Run with the servers; kill the second during a rollout, and start it again later."""
    engine = {
        "class_path": "ServerEngine",
        "init_args": {
            "url": [server.url for server in servers],
            "model": "policy",
            "folder": str(folder / "weights"),
        },
    }
    config = write_config(folder, iterations, 1, {"engine": engine})
    run = start_fit(folder, config, first)
    victim = servers[1]

    def reach(number: int) -> None:
        while learned(folder) < number and run.poll() is None:
            time.sleep(0.1)

    try:
        reach(iterations // 4)
        before = victim.turns() or 0
        while (victim.turns() or 0) <= before and run.poll() is None:
            time.sleep(0.01)
        victim.end(signal.SIGKILL)
        print(f"killed {victim.url} in iteration {learned(folder)}, after {before} turns")
        reach(iterations // 2)
        victim.start()
        print(f"started {victim.url} again in iteration {learned(folder)}")
        if run.wait():
            raise RuntimeError(f"the run failed; see {folder / 'log.txt'}")
        print(f"turns it sampled since then: {victim.turns()}; the other: {servers[0].turns()}")
    finally:
        if run.poll() is None:
            run.terminate()


def compare(here: Path, there: Path) -> bool:
    """Print both runs side by side; return whether every reward is the same."""
    ours, theirs = Records(here / "records"), Records(there / "records")
    same_rewards = True
    for number in ours.iterations():
        pairs = list(zip(ours.read(number).records, theirs.read(number).records, strict=True))
        tokens = sum(a.response_ids == b.response_ids for a, b in pairs)
        rewards = [[r.reward["value"] for r in side] for side in zip(*pairs, strict=True)]
        same_rewards = same_rewards and rewards[0] == rewards[1]
        means = [sum(values) / len(values) for values in rewards]
        print(
            f"iteration {number:3d}  equal rollouts {tokens}/{len(pairs)}  mean reward in process "
            f"{means[0]:.4f}, on servers {means[1]:.4f}"
        )
    for name, folder in (("in process", here), ("on servers", there)):
        last: dict[str, Any] = [row for row in rows(folder) if "val/f1" in row][-1]
        print(f"{name}: last val F1 {last['val/f1']:.4f}, reward {last['val/reward']:.4f}")
    return same_rewards


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument(
        "--port", type=int, default=18231, help="of the first server; then the next"
    )
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    here, there = (args.out / "here").absolute(), (args.out / "there").absolute()
    fit(here, write_config(here, args.iterations, 1, {}))
    model = here / "warmstart"
    servers = [Server(model, args.port + i, args.out / f"server{i}.txt") for i in range(2)]
    try:
        for server in servers:
            server.start()
        train_on_servers(there, here, args.iterations, servers)
    finally:
        for server in servers:
            server.end(signal.SIGTERM)
    sys.exit(0 if compare(here, there) else 1)


if __name__ == "__main__":
    main()

"""Two processes with the same global batch learn what one process learns."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from doubles.training import Data, checkpoint, module, trainer, weights

from research_rl.agents import Rollout
from research_rl.trainers.credit import Price
from research_rl.trainers.distributed.ranks import gather
from research_rl.trainers.settings.options import Updates


class Longer(Price):
    """What a rollout wrote beyond the shortest of its group."""

    def charges(self, rollouts: Sequence[Rollout]) -> list[float]:
        """See Price."""
        shortest: dict[str, int] = {}
        for rollout in rollouts:
            length = len(rollout.response_ids)
            shortest[rollout.question.id] = min(shortest.get(rollout.question.id, length), length)
        return [0.02 * (len(r.response_ids) - shortest[r.question.id]) for r in rollouts]


def run(folder: Path, policy: Path, devices: int, priced: bool) -> None:
    """Train two iterations; rank zero saves the weights."""
    several = Updates(4, num_epochs=2, micro_batch_size=3)
    trained = module(policy, updates=several, price=Longer() if priced else None)
    strategy = "ddp" if devices > 1 else "auto"
    arguments = {"devices": devices, "strategy": strategy, "use_distributed_sampler": False}
    runner = trainer(folder, steps=4, **arguments)
    runner.fit(trained, Data(val_batch_size=3))
    if runner.is_global_zero:
        torch.save(weights(trained), folder / "weights.pt")


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = ({k: float(v) for k, v in row.items() if v} for row in rows)
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in kept]


def test_a_single_process_hears_only_itself() -> None:
    assert gather([1, 2]) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("priced", [False, True])
def test_two_processes_learn_what_one_does(priced: bool, tmp_path: Path) -> None:
    policy = checkpoint(tmp_path / "policy")
    for devices in (1, 2):
        command = [sys.executable, __file__, str(tmp_path / str(devices)), str(policy)]
        subprocess.run([*command, str(devices), str(int(priced))], check=True, timeout=300)
    one, two = (torch.load(tmp_path / str(n) / "weights.pt") for n in (1, 2))
    assert torch.allclose(one, two, atol=1e-6)
    for ours, theirs in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        assert (ours.get("train/price", 0) > 0) == (priced and "train/reward" in ours)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1")

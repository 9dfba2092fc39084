"""Two processes with weights in shards go back to a snapshot together, exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles import training
from torch.distributed.tensor import DTensor

from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.checkpoint.files import AtomicCheckpointIO
from research_rl.trainers.distributed.sharding import ShardedStrategy
from research_rl.trainers.health import monitor as health
from research_rl.trainers.health.guard import CollapseGuard
from research_rl.trainers.health.monitor import HealthMonitor
from research_rl.trainers.health.rules import Rule
from research_rl.trainers.settings.options import Updates

pytestmark = pytest.mark.slow
CASES = ("shards", "file", "lora")
ALARM = [Rule("it always rings", "train/reward", "above", factor=0.0, plus=-1.0)]


class Look(pl.Callback):
    """Keeps this rank's share of what is trained, and of its moments, before each iteration."""

    def __init__(self) -> None:
        self.seen: dict[int, list[torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        """Copy them."""
        (optimizer,) = trainer.optimizers
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        moments = [optimizer.state[p]["exp_avg"] for p in trained if p in optimizer.state]
        self.seen[module.iteration] = [
            torch.cat([(t.to_local() if isinstance(t, DTensor) else t).flatten() for t in some])
            for some in (trained, moments or trained)
        ]


def fit(folder: Path, policy: Path, lora: bool, strategy: ShardedStrategy) -> None:
    """Train five iterations, in which the guard acts twice, and write what each rank saw."""
    health.health_picture = lambda _, target: target  # drawing takes longer than these runs
    look = Look()
    guard = CollapseGuard(
        True, 0.5, 4.0, ALARM, patience=1, cooldown=0, max_actions=2, snapshot_every=1
    )
    runner = training.trainer(
        folder,
        5,
        devices=2,
        strategy=strategy,
        use_distributed_sampler=False,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[HealthMonitor(0), guard, look],
    )
    trained = training.module(
        PolicyConfig(str(policy), lora=LoraConfig(r=4) if lora else None),
        algorithm=GRPO(kl_coef=0.01),
        updates=Updates(4, micro_batch_tokens=100),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    runner.fit(trained, training.Data())
    torch.save(look.seen, folder / f"seen-{runner.global_rank}.pt")


def worker(folder: Path) -> None:
    """What each of the two processes runs."""
    for case in CASES:
        strategy = ShardedStrategy(save_distributed_checkpoint=case == "shards")
        fit(folder / case, folder / "policy", case == "lora", strategy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have run."""
    folder = tmp_path_factory.mktemp("ranks")
    training.checkpoint(folder / "policy")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command, str(folder)], check=True, timeout=280, env=environment
    )
    return folder


@pytest.mark.parametrize("case", CASES)
def test_ranks_go_back_together(folder: Path, case: str) -> None:
    lines = (folder / case / "guard.jsonl").read_text().splitlines()
    acted = [row for row in map(json.loads, lines) if row["kind"] == "act"]
    assert [[row["step"], row["back_to"]] for row in acted] == [[2, 1], [3, 1]]
    assert [row["lr"] for row in acted] == [5e-4, 2.5e-4]
    for rank in range(2):
        seen = torch.load(folder / case / f"seen-{rank}.pt")
        for part, kept in enumerate(seen[1]):
            assert torch.equal(seen[3][part], kept)
            assert torch.equal(seen[4][part], kept)
            assert not torch.equal(seen[2][part], kept)


@pytest.mark.parametrize("case", CASES)
def test_old_snapshots_go(folder: Path, case: str) -> None:
    kept = list((folder / case / "guard").iterdir())
    assert sorted(path.name for path in kept) == ["good_000001.ckpt", "good_000002.ckpt"]
    assert {path.is_dir() for path in kept} == {case == "shards"}


if __name__ == "__main__":
    worker(Path(sys.argv[1]))

"""Two processes in one gloo group learn what one process learns, with copies and with shards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.training import Data, checkpoint, module, trainer, weights

from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.trainers.checkpoint.export import load_weights
from research_rl.trainers.checkpoint.files import AtomicCheckpointIO, find_checkpoint, load_state
from research_rl.trainers.distributed.sharding import ShardedStrategy
from research_rl.trainers.settings.options import Updates

STEPS, FURTHER = 4, 6


def policy(folder: Path, lora: bool) -> PolicyConfig:
    """The tiny policy of the tests, with an adapter or without."""
    return PolicyConfig(str(folder / "policy"), lora=LoraConfig(r=4) if lora else None)


def fit(
    folder: Path, strategy: Any, lora: bool = False, start: Path | None = None, steps: int = STEPS
) -> tuple[Any, Any]:
    """Train some updates, two an iteration; return trainer and module."""
    trained = module(
        policy(folder, lora),
        updates=Updates(4, num_epochs=2, micro_batch_tokens=100),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    several = {} if strategy == "auto" else {"devices": 2, "strategy": strategy}
    runner = trainer(
        folder,
        steps,
        use_distributed_sampler=False,
        limit_val_batches=0,
        logger=False,
        plugins=[AtomicCheckpointIO()],
        **several,
    )
    runner.fit(trained, Data(), ckpt_path=start)
    return runner, trained


def worker(folder: Path) -> None:
    """What each of the two processes runs: every strategy, and resuming on both."""
    for name, lora in (("ddp", False), ("fsdp2", False), ("ddp", True), ("fsdp2", True)):
        several = "ddp" if name == "ddp" else ShardedStrategy(save_distributed_checkpoint=True)
        runner, trained = fit(folder, several, lora)
        case = f"{name}{'-lora' if lora else ''}"
        runner.save_checkpoint(folder / f"{case}.ckpt")
        save_weights(trained, runner.is_global_zero, folder / f"{case}.pt")
    several = ShardedStrategy()
    runner, trained = fit(folder, several, start=folder / "one.ckpt", steps=FURTHER)
    runner.save_checkpoint(folder / "resumed.ckpt")
    save_weights(trained, runner.is_global_zero, folder / "resumed.pt")


def save_weights(trained: Any, first: bool, file: Path) -> None:
    """Write all weights once."""
    with trained.whole_policy():
        if first:
            torch.save(weights(trained), file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The weights of one process, and the folder in which two have run."""
    folder = tmp_path_factory.mktemp("ranks")
    checkpoint(folder / "policy")
    one: dict[str, Any] = {"folder": folder}
    for lora in (False, True):
        runner, trained = fit(folder, "auto", lora)
        one["one-lora" if lora else "one"] = weights(trained)
        runner.save_checkpoint(folder / ("one-lora.ckpt" if lora else "one.ckpt"))
    one["further"] = weights(fit(folder, "auto", steps=FURTHER)[1])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command, str(folder)], check=True, timeout=280, env=environment
    )
    return one


@pytest.mark.parametrize("case", ["ddp", "fsdp2", "ddp-lora", "fsdp2-lora"])
def test_two_processes_learn_what_one_does(runs: dict[str, Any], case: str) -> None:
    alone = runs["one-lora" if case.endswith("lora") else "one"]
    assert (torch.load(runs["folder"] / f"{case}.pt") - alone).abs().max() < 2e-5


def test_one_process_resumes_what_two_saved_in_shards(runs: dict[str, Any]) -> None:
    folder = runs["folder"]
    assert find_checkpoint(str(folder / "fsdp2.ckpt"), folder).is_dir()
    trained = fit(folder, "auto", start=folder / "fsdp2.ckpt", steps=FURTHER)[1]
    assert trained.iteration == FURTHER // 2
    assert (weights(trained) - runs["further"]).abs().max() < 2e-5


def test_two_processes_resume_what_one_saved(runs: dict[str, Any]) -> None:
    folder = runs["folder"]
    assert (torch.load(folder / "resumed.pt") - runs["further"]).abs().max() < 2e-5
    assert load_state(folder / "resumed.ckpt")["iteration"] == FURTHER // 2


@pytest.mark.parametrize("case", ["fsdp2", "fsdp2-lora", "resumed"])
def test_checkpoints_of_shards_are_exported(runs: dict[str, Any], case: str) -> None:
    folder = runs["folder"]
    config = policy(folder, case.endswith("lora"))
    exported = LMPolicy.from_config(config)
    load_weights(exported, folder / f"{case}.ckpt", config)
    flat = torch.cat([p.detach().flatten() for p in exported.parameters()])
    assert torch.equal(flat, torch.load(folder / f"{case}.pt"))


def test_an_adapter_is_saved_alone(runs: dict[str, Any]) -> None:
    for case in ("ddp-lora", "fsdp2-lora"):
        state = torch.load(runs["folder"] / f"{case}.ckpt")["state_dict"]
        assert state
        assert all("lora_" in name for name in state)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))

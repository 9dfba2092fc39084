"""The private parts of Lightning that are used are there, and do what they did when they were read.

A failure here after an upgrade names the part; trainers/lightning_internals.py says what it is for.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed.checkpoint as dcp
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.strategies import ModelParallelStrategy

from research_rl.trainers import lightning_internals as internals

CHANGED = f"pytorch-lightning {pl.__version__}: "


class Line(pl.LightningModule):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to score."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(pl.Callback):
    """Notes behind each batch whether a validation was announced, and whether it came."""

    def __init__(self) -> None:
        self.announced: list[bool] = []
        self.came: list[bool] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if len(self.came) == 6:
            trainer.should_stop = True  # which calls for a validation of its own
        self.announced.append(internals.validates_next(trainer))
        self.came.append(False)

    def on_validation_start(self, *args: Any) -> None:
        self.came[-1] = True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"val_check_interval": 2, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"val_check_interval": 0.5},
        {"limit_val_batches": 0},
    ],
)
def test_a_validation_is_known_before_it_comes(settings: dict[str, Any], tmp_path: Path) -> None:
    watch = Watch()
    trainer = pl.Trainer(
        **settings,
        accelerator="cpu",
        max_epochs=9,
        num_sanity_val_steps=0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = torch.utils.data.DataLoader([0] * 4)
    trainer.fit(Line(), loader, loader)
    said = "_should_check_val_fx no longer says whether a validation follows"
    assert watch.announced == watch.came, CHANGED + said
    assert any(watch.came) == ("limit_val_batches" not in settings)


class States(pl.Callback):
    """Keeps the state of the loops behind each batch and at the end."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.kept.append(trainer.fit_loop.state_dict())

    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.kept.append(trainer.fit_loop.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_the_state_behind_a_pass_is_that_of_the_next(tmp_path: Path) -> None:
    states = States()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_val_batches=0,
        callbacks=[states],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Line(), torch.utils.data.DataLoader([0] * 2))
    inside, behind, _, last, end = states.kept
    assert internals.at_next_pass(inside) is inside, CHANGED + "a state inside an epoch is another"
    for state, passes in ((behind, 1), (last, 2), (end, 2)):
        made = internals.at_next_pass(state)
        epoch, batch = made["epoch_progress"]["total"], made["epoch_loop.batch_progress"]
        begun = {"ready": passes + 1, "started": passes + 1}
        assert epoch == {**begun, "processed": passes, "completed": passes}, CHANGED + "epochs"
        assert batch["total"]["completed"] == 2 * passes - 1, CHANGED + "batches"
        assert not batch["is_last_batch"]
        assert internals.at_next_pass(made) is made
    same = internals.at_next_pass(end) == internals.at_next_pass(last)
    assert same, CHANGED + "the loops keep more at the end than behind the last batch"


def test_the_cluster_is_that_of_the_trainer(tmp_path: Path) -> None:
    slurm = SLURMEnvironment(auto_requeue=False)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
    trainer = pl.Trainer(plugins=[slurm], **settings)
    said = "_accelerator_connector.cluster_environment is no longer the plugin that was given"
    assert internals.cluster_of(trainer) is slurm, CHANGED + said


def test_a_sharded_strategy_takes_what_its_constructor_takes() -> None:
    changed, built = ModelParallelStrategy(), ModelParallelStrategy(3, 1, False)
    assert vars(changed) != vars(built)
    internals.shard_over(changed, 3)
    internals.save_in_shards(changed, False)
    for name in ("_data_parallel_size", "_save_distributed_checkpoint"):
        said = f"ModelParallelStrategy no longer keeps an argument as {name}"
        assert getattr(changed, name) == getattr(built, name, None), CHANGED + said


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_in_shards_is_put_together(tmp_path: Path) -> None:
    dcp.save({"weight": torch.arange(6.0)}, checkpoint_id=tmp_path)
    torch.save({"iteration": 3}, tmp_path / internals.sharded_metadata())
    state = internals.load_shards(tmp_path)
    said = "_load_distributed_checkpoint no longer returns tensors and the metadata file's content"
    assert state.keys() == {"weight", "iteration"}, CHANGED + said
    assert torch.equal(state["weight"], torch.arange(6.0)), CHANGED + said


def test_the_method_that_the_command_overrides_is_there() -> None:
    said = "LightningCLI._parse_ckpt_path is gone; does a checkpoint override the command line now?"
    assert callable(getattr(LightningCLI, "_parse_ckpt_path", None)), CHANGED + said


def test_a_part_that_is_gone_is_named_with_the_version_that_had_it() -> None:
    bare: Any = SimpleNamespace(fit_loop=SimpleNamespace())
    with pytest.raises(internals.LightningChangedError) as error:
        internals.validates_next(bare)
    for part in (
        "_data_fetcher",
        pl.__version__,
        f"install pytorch-lightning=={internals.SEEN_LIGHTNING}",
    ):
        assert part in str(error.value)

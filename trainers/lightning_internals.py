"""Private parts of Lightning that the trainers read or set, all of them in this module.

Seen with pytorch-lightning 2.6.6 and lightning-fabric 2.6.6. Each function says why no public way
exists, and has a test that fails by name where an upgrade takes its part away or changes it. One
more is a method that ``ResearchCLI`` overrides, ``LightningCLI._parse_ckpt_path``: it would let the
hyperparameters in a checkpoint override the command line, and nothing turns that off.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.utilities import load as fabric_load
from pytorch_lightning.strategies import ModelParallelStrategy

SEEN_LIGHTNING = "2.6.6"
"""The version of Lightning with which all of this was seen to work."""


class LightningChangedError(ImportError):
    """The installed version of Lightning lacks a private part that this package uses."""


def validates_next(trainer: pl.Trainer) -> bool:
    """Return whether a validation follows the training batch that has just ended.

    For ``on_train_batch_end``. Lightning decides by batches, epochs and seconds, and shows it only
    by validating; a checkpoint that is written in between must know before.
    """
    fetcher = _part(trainer.fit_loop, "_data_fetcher")
    return bool(_part(trainer.fit_loop.epoch_loop, "_should_check_val_fx")(fetcher))


def at_next_pass(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the fit loop, taken behind the last batch of a pass, as the next begins.

    Any other state is returned as it is. Restored as they are, states of ``on_train_batch_end``
    there and of ``on_train_end`` miscount the epochs: with ``max_epochs`` alone the loader's state
    is then ignored, and batches are trained on twice. No hook changes what a loop saves.
    """
    batch, epoch = _held(state, "epoch_loop.batch_progress"), _held(state, "epoch_progress")
    loop = _held(state, "epoch_loop.state_dict")
    counted, passed = batch["total"], epoch["total"]
    ended = counted["completed"] == counted["processed"]
    over = ended and passed["completed"] == passed["ready"]  # on_train_end
    inside = not ended and passed["processed"] == passed["started"] - 1  # on_train_batch_end
    if not (batch["is_last_batch"] and (over or inside)):
        return state
    # as in on_train_batch_end: the batch is not counted yet, but the next epoch has begun
    begun = ("ready", "started") if over else tuple(passed)
    return {
        **state,
        "epoch_loop.batch_progress": {
            **batch,
            "is_last_batch": False,
            **_counts(batch, ("completed",) if over else (), -1),
        },
        "epoch_progress": {**epoch, **_counts(epoch, begun, 1)},
        "epoch_loop.state_dict": {
            **loop,
            "_batches_that_stepped": loop["_batches_that_stepped"] - int(over),
        },
    }


def _counts(progress: dict[str, Any], names: tuple[str, ...], by: int) -> dict[str, Any]:
    return {
        of: {name: n + by * (name in names) for name, n in progress[of].items()}
        for of in ("total", "current")
    }


def cluster_of(trainer: pl.Trainer) -> ClusterEnvironment | None:
    """Return what started the processes, None where Lightning has not looked.

    Strategies for a single device do not have it, although SLURM may have started that one process.
    """
    connector = _part(trainer, "_accelerator_connector")
    found: ClusterEnvironment | None = _part(connector, "cluster_environment")
    return found


def shard_over(strategy: ModelParallelStrategy, ranks: int) -> None:
    """Have the strategy lay weights in shards over so many ranks.

    Its constructor takes the number, but only the trainer, which comes later, knows it.
    """
    _part(strategy, "_data_parallel_size")
    strategy._data_parallel_size = ranks


def save_in_shards(strategy: ModelParallelStrategy, wanted: bool) -> None:
    """Have the strategy write checkpoints in shards, or as single files.

    Its constructor takes the choice; whether a module trains an adapter alone is known later.
    """
    _part(strategy, "_save_distributed_checkpoint")
    strategy._save_distributed_checkpoint = wanted


def sharded_metadata() -> str:
    """Return the name of the file, in a checkpoint in shards, that holds all but tensors."""
    return str(_part(fabric_load, "_METADATA_FILENAME"))


def load_shards(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint in shards holds, put together in main memory.

    torch's own ``dcp_to_torch_save`` writes a second copy to disk instead.
    """
    state: dict[str, Any] = _part(fabric_load, "_load_distributed_checkpoint")(folder)
    return state


def _held(state: dict[str, Any], name: str) -> dict[str, Any]:
    try:
        held: dict[str, Any] = state[name]
    except KeyError as error:
        raise _changed("the state of the fit loop", name) from error
    return held


def _part(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        kind = getattr(owner, "__name__", type(owner).__name__)
        raise _changed(kind, name) from error


def _changed(kind: str, name: str) -> LightningChangedError:
    installed = version("pytorch-lightning")
    return LightningChangedError(
        f"{kind} of pytorch-lightning {installed} must have {name}, which {__name__} uses, and "
        f"has not; install pytorch-lightning=={SEEN_LIGHTNING}"
    )

"""The start of a run: checks, settings and warnings that come before training.

For example, ``trainer.gradient_clip_val`` is refused with the name of the option to set instead,
and a new run is refused in a folder that holds another one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytorch_lightning as pl
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.utilities import rank_zero_only

from research_rl.envs.system import alone_in, is_held
from research_rl.trainers import checkpoint
from research_rl.trainers.checkpoint import RunLogger, changes, policy_config, run_in
from research_rl.trainers.settings import UsageError

log = logging.getLogger(__name__)
_HOW_ASKED = (
    *("model.env.protocol", "model.env.prompt", "model.env.top_k", "model.env.max_searches"),
    *("model.env.max_chars", "model.sampling.max_", "model.sampling.stop"),
)
_CHANGES = 8
"""Options that are named if they are others than before."""
_CSV_LOGGER = [f"pytorch_lightning.loggers{module}.CSVLogger" for module in ("", ".csv_logs")]
_RUN_LOGGER = f"{checkpoint.__name__}.{RunLogger.__name__}"
_HELD = "is held by another run that is not over"
_IN_THE_RUN = ("last", "best")
"""Names of checkpoints that are looked up in the run's own folder."""


def leads() -> bool:
    """Whether this is the first of the processes of a run, before Lightning has counted them."""
    first_node = os.environ.get("NODE_RANK", "0") == "0"  # each node's launcher is started by hand
    return first_node and getattr(rank_zero_only, "rank", 0) == 0


def check_trainer_options(trainer: Namespace) -> None:
    """Name our own options where Lightning's would be refused without a hint.

    Raises:
        UsageError: one of them is set.
    """
    for name, unset, ours in (
        ("gradient_clip_val", None, "model.updates.max_grad_norm"),
        ("accumulate_grad_batches", 1, "model.updates.micro_batch_size"),
    ):
        if (value := trainer.get(name)) not in (None, unset):
            raise UsageError(
                f"trainer.{name} must be left out, got {value}; an iteration makes its updates "
                f"itself: set {ours}"
            )


def check_nothing_is_lost(root: Path, ckpt_path: str | None, overwrite: bool) -> None:
    """Refuse to begin anew in the folder of a run.

    Args:
        root: the folder.
        ckpt_path: the checkpoint that training starts from; one of this run makes it go on.
        overwrite: whether the user wants the run replaced.

    Raises:
        UsageError: the folder holds a run.
    """
    own = ckpt_path and Path(ckpt_path).resolve().is_relative_to(root.resolve())
    if ckpt_path in _IN_THE_RUN or own:
        return
    held = run_in(root)
    if held and not overwrite:
        raise UsageError(
            f"{root} holds a run already ({held}); to go on with it add --ckpt_path last, to "
            "replace it add --overwrite, to keep it choose another --trainer.default_root_dir"
        )


def check_none_elsewhere(root: Path, overwrite: bool) -> None:
    """Refuse to begin anew where ``last`` was not found and the run has checkpoints all the same.

    So it is where the callback that writes them has got another folder since. Metrics alone are no
    hindrance: a job that was killed before its first checkpoint begins anew.

    Args:
        root: the run's folder.
        overwrite: whether the user wants the run replaced.

    Raises:
        UsageError: there are checkpoints in its usual place.
    """
    found = sorted((root / "checkpoints").glob("*.ckpt"))
    if found and not overwrite:
        raise UsageError(
            f"{root} holds a run already ({run_in(root)}), but no checkpoint is where this run "
            f"would write its own (dirpath of its callback); to go on add --ckpt_path {found[-1]}, "
            "to replace the run add --overwrite"
        )


def hold(held: ExitStack, root: Path) -> None:
    """Lock the folder of a run until the stack is closed, making it if need be.

    Raises:
        FileExistsError: another fit has locked it.
    """
    held.enter_context(alone_in(root, _HELD, "choose another --trainer.default_root_dir"))


def hold_checkpoints(
    held: ExitStack, trainer: pl.Trainer, ckpt_path: str | None, overwrite: bool
) -> None:
    """Refuse to begin anew where another run's checkpoints are, and lock folders outside the run.

    Args:
        held: lets go of the folders when it is closed.
        trainer: its callbacks write checkpoints, each into its ``dirpath``; the usual one,
            ``checkpoints`` in the run's folder, was looked at before.
        ckpt_path: the checkpoint that training starts from.
        overwrite: whether the user wants what is there replaced.

    Raises:
        UsageError: a folder holds checkpoints.
        FileExistsError: another fit has locked one.
    """
    root = Path(trainer.default_root_dir)
    own, named = root.resolve(), {getattr(c, "dirpath", None) for c in trainer.checkpoint_callbacks}
    folders = sorted({Path(one).resolve() for one in named if one and "://" not in one})
    begun = None if ckpt_path in (None, *_IN_THE_RUN) else Path(str(ckpt_path)).resolve()
    goes_on = begun is not None and any(begun.is_relative_to(one) for one in (own, *folders))
    for folder in folders:
        if folder == own / "checkpoints":
            continue
        instead = "give the callback that writes checkpoints another dirpath"
        if not folder.is_relative_to(own):
            if folder.name == "checkpoints" and is_held(folder.parent):
                raise FileExistsError(
                    f"{folder.parent} {_HELD}; wait until it has ended, or {instead}"
                )
            held.enter_context(alone_in(folder, _HELD, instead))
        found = sorted(path.name for path in folder.glob("*.ckpt"))
        if not found or overwrite or goes_on:
            continue
        if ckpt_path not in _IN_THE_RUN:
            raise UsageError(
                f"{folder}, the dirpath of a callback, holds checkpoints of a run already "
                f"({', '.join(found[:3])}); to go on with it add --ckpt_path last, to replace them "
                f"add --overwrite, to keep them {instead}"
            )
        if not run_in(root):
            log.warning(
                "%s holds no run, but %s holds checkpoints (%s), and the run goes on with them; if "
                "they are another run's, end this one and %s",
                *(root, folder, ", ".join(found[:3]), instead),
            )


def date_to_write(root: Path, ckpt_path: str | None) -> str:
    """Return the day that a chat template takes for today; a run that goes on keeps its own.

    Args:
        root: the run's folder.
        ckpt_path: the checkpoint that is used; the config beside it says its day.
    """
    if ckpt_path:
        run = root if ckpt_path in _IN_THE_RUN else Path(ckpt_path).parent.parent
        with suppress(OSError, ValueError, TypeError, yaml.YAMLError):  # named where it is read
            if known := policy_config(run / "config.yaml", run).chat_template.date:
                return known
    return date.today().isoformat()


def take_run_logger(trainer: Namespace) -> None:
    """Let a RunLogger, with its settings, stand where a config names Lightning's CSVLogger.

    It writes the same file, and a run that is resumed goes on in it.
    """
    given = trainer.get("logger")
    for logger in given if isinstance(given, list) else [given]:
        named = isinstance(logger, Namespace) and logger.class_path in _CSV_LOGGER
        if named and "://" not in str(logger.init_args.save_dir):
            logger.class_path = _RUN_LOGGER


def set_threads(threads: int | None) -> None:
    """Set the CPU threads of torch and faiss; None leaves them alone."""
    if threads is None:
        return
    torch.set_num_threads(threads)
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)


def warn_of_overridden(subcommand: str, options: Namespace) -> None:
    """Warn of environment variables that a config or the command line overrides.

    Args:
        subcommand: whose variables are looked at: ``RESEARCH_FIT__DATA__SEED`` for fit.
        options: its options.
    """
    prefix = f"RESEARCH_{subcommand.upper()}__"
    for variable, text in sorted(os.environ.items()):
        key = variable.removeprefix(prefix).lower().replace("__", ".")
        if variable.startswith(prefix) and key in options:
            value = options[key]
            if str(value) != str(yaml.safe_load(text)):
                log.warning("%s has no effect: a config or an option says %s", variable, value)


def warn_of_changes(root: Path, ckpt_path: str, now: str, goes_on: bool = True) -> None:
    """Warn of options that a run had otherwise before.

    Args:
        root: the run's folder.
        ckpt_path: the checkpoint; the config of its run is compared.
        now: YAML of the config with which it goes on.
        goes_on: whether it trains on; else its policy is asked, and what counts is how it was
            asked in training.
    """
    here = ckpt_path in _IN_THE_RUN
    if "://" in ckpt_path or (here and not run_in(root)):
        return  # a folder elsewhere; or nothing to go on with, which fit says
    file = (root if here else Path(ckpt_path).parent.parent) / "config.yaml"
    if not goes_on and not file.is_file():
        return  # weights without a run
    try:
        found = changes(file.read_text(encoding="utf-8"), now, goes_on)
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning(
            "%s cannot be compared with this run's options (%s): a changed one is not told",
            file,
            " ".join(str(getattr(error, "strerror", None) or error).split()),
        )
        return
    said = "the run goes on with another option than it had"
    if not goes_on:
        found = [change for change in found if change.startswith(_HOW_ASKED)]
        said = "the policy is asked otherwise than it was trained"
    for change in found[:_CHANGES]:
        log.warning("%s: %s", said, change)
    if len(found) > _CHANGES:
        log.warning("and with %d other ones", len(found) - _CHANGES)


def warn_of_lost_rows(loggers: Iterable[Logger]) -> None:
    """Warn of loggers that would not go on in their file."""
    for logger in loggers:
        if isinstance(logger, CSVLogger) and not isinstance(logger, RunLogger):
            log.warning(
                "%s in %s begins a new metrics.csv, also where a run goes on; RunLogger, in a "
                "folder of this machine, appends to it",
                type(logger).__name__,
                logger.log_dir,
            )

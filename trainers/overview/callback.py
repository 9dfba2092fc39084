"""The callback that writes the page of a run while it trains, and again when it has ended."""

from __future__ import annotations

import json
import math
import platform
import resource
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from functools import lru_cache
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import SaveConfigCallback

from research_rl.envs.system import clear_partial, write_whole
from research_rl.trainers.callbacks import (
    RunCallback,
    cosmetic,
    learns_from_rewards,
    run_folder,
)
from research_rl.trainers.overview.folder import COSTS, number
from research_rl.trainers.overview.page import PAGE, write_run_page
from research_rl.trainers.overview.shipped import FullConfig


class RunPage(RunCallback):
    """Writes ``index.html`` of the run's folder: verdict, curves, costs, health, questions.

    ``research fit`` adds it to every run, and ``research page`` writes the same page of a run that
    has none. What the run costs in memory goes to ``costs.json`` beside it.

    Args:
        every_n_seconds: how often the page is renewed while training goes on; it is always written
            at the end.

    Raises:
        ValueError: ``every_n_seconds`` is negative.
    """

    label = "page"

    def __init__(self, every_n_seconds: float = 120.0) -> None:
        super().__init__()
        if every_n_seconds < 0:
            raise ValueError(f"every_n_seconds must be 0 or more, got {every_n_seconds}")
        self.every_n_seconds = every_n_seconds
        self._written_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a first page, to which others link; remove what a killed run left half written."""
        if trainer.is_global_zero:
            with cosmetic("clear half-written pages"):
                for name in (PAGE, COSTS):
                    clear_partial(run_folder(trainer), name)
        self._write(trainer, over=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Renew the page if it is time for it."""
        if monotonic() - self._written_at >= self.every_n_seconds:
            self._write(trainer, over=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Renew the page if it is time for it, in a fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.on_train_batch_end(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page of the whole run."""
        self._write(trainer, over=True)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the page of a run that ends by an error or by Ctrl-C."""
        if trainer.state.fn == "fit" and trainer.is_global_zero and self._written_at:
            self._write(trainer, over=True)

    def _write(self, trainer: pl.Trainer, over: bool) -> None:
        dry = getattr(trainer, "fast_dev_run", False)
        if dry or not trainer.is_global_zero:
            return
        with cosmetic("write the page of the run"):
            folder = run_folder(trainer)
            for logger in trainer.loggers:
                logger.save()
            costs = _costs(folder / COSTS) | {"command": _command(trainer.lightning_module)}
            costs |= {} if (most := _passes(trainer)) is None else {"iterations": most}
            write_whole(folder / COSTS, json.dumps(costs) + "\n")
            self.written = write_run_page(folder, _full_config(trainer), over, begun=False)
        self._written_at = monotonic()


def _command(module: pl.LightningModule) -> str:
    """The command that trains such a module, for whoever goes on with the run."""
    return "fit" if learns_from_rewards(module) else "sft"


def _passes(trainer: pl.Trainer) -> int | None:
    """Iterations of all passes over the questions; None where ``max_epochs`` sets no limit."""
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    limited = epochs is not None and epochs > 0 and math.isfinite(batches) and batches > 0
    return epochs * int(batches) if epochs is not None and limited else None


def _costs(file: Path) -> dict[str, Any]:
    """Peaks of this process, or of an earlier one of the run where those were higher."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    machine = f"{platform.machine()}, {platform.system()}"
    if torch.cuda.is_available():
        peaks["device_bytes"] = torch.cuda.max_memory_allocated()
        machine = torch.cuda.get_device_name()
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    earlier = before if isinstance(before, dict) else {}
    most = {name: max(value, number(earlier.get(name)) or 0) for name, value in peaks.items()}
    return {"machine": machine, **most}


def _full_config(trainer: pl.Trainer) -> FullConfig | None:
    """What makes all options of a shipped config: the parser that made this run's; None without."""
    every: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    saver = next((c for c in every if isinstance(c, SaveConfigCallback)), None)
    return None if saver is None else lambda words: _parsed(saver.parser, tuple(words))


@lru_cache(maxsize=4)
def _parsed(parser: Any, words: tuple[str, ...]) -> Mapping[str, Any]:
    """All options that a fit has with these words.

    Raises:
        ValueError: the parser refuses them.
    """
    try:
        with redirect_stderr(StringIO()) as said:
            found: Mapping[str, Any] = parser.parse_args(list(words), defaults=True).as_dict()
    except (Exception, SystemExit) as error:  # whatever a parser says: the run goes on without
        raise ValueError(f"{error} {said.getvalue()}") from error
    return found

"""The file ``metrics.csv`` of a run; a resumed run appends to it and loses or repeats no row.

Lightning's CSVLogger deletes the file whenever a trainer starts. The logger here only appends, and
its rows travel in the checkpoints: whatever a crash left of the file, a resumed run has exactly the
rows that its checkpoint has seen.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

from research_rl.envs.system import write_whole

log = logging.getLogger(__name__)


class MetricsError(OSError):
    """The metrics file could not be read or written; no row of it was dropped."""


class MetricsFile(ExperimentWriter):
    """The ``metrics.csv`` of a folder, to which rows are appended.

    The head of the table is written anew when a metric comes up for the first time.

    Args:
        log_dir: the folder.
    """

    def __init__(self, log_dir: str) -> None:  # Lightning's would delete the file
        self.log_dir = log_dir
        self.path = Path(log_dir) / self.NAME_METRICS_FILE
        self.metrics = []  # rows that wait
        self.hparams = {}
        self._step: int | None = None
        self._text: str | None = None  # what the file holds; None until somebody looks

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Let a row wait for the next ``save``."""
        super().log_metrics(metrics_dict, step if self._step is None else self._step)

    def save(self) -> None:
        """Append the rows that wait.

        Raises:
            MetricsError: the file does not take them; it is as it was, and they wait on.
        """
        if not self.metrics:
            return
        former = self.text()
        names = _names(former)
        wanted = sorted({*names, *(name for row in self.metrics for name in row)})
        added = _table(wanted, self.metrics)
        with self._explained("write", "make room"):
            if wanted == names and self.path.is_file():
                _append(self.path, added)
            else:
                former = _table(wanted, _rows(former), head=True)
                write_whole(self.path, former + added)
        self._text, self.metrics = former + added, []

    def begin(self, text: str, step: int | None = None) -> None:
        """Replace what the file holds by a text, to which later rows are appended.

        Args:
            text: of a metrics file; "" removes the file.
            step: of every row that follows; None takes what each is logged with.

        Raises:
            MetricsError: the file cannot be written; it is as it was.
        """
        with self._explained("write", "make room"):
            if text:
                write_whole(self.path, text)
            else:
                self.path.unlink(missing_ok=True)
        self._text, self._step = text, step

    def cut(self, step: int) -> None:
        """Drop the rows of later steps than this one.

        Raises:
            MetricsError: the file cannot be read or written; it is as it was.
        """
        if text := self.text():
            kept = [row for row in _rows(text) if float(row["step"]) <= step]
            self.begin(_table(_names(text), kept, head=True))

    def text(self) -> str:
        """Return what the file holds.

        Raises:
            MetricsError: an earlier process left a file that cannot be read.
        """
        if self._text is None:
            with self._explained("read", "move it away"):
                self._text = _read(self.path) if self.path.is_file() else ""
        return self._text

    @contextmanager
    def _explained(self, what: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            said = f"cannot {what} {self.path}: {reason}"
            raise MetricsError(f"{said}; {remedy}, then resume with --ckpt_path last") from error


class RunLogger(CSVLogger):
    """Lightning's CSVLogger, except that it appends to the file that it finds.

    The callback KeepMetrics says what the file holds when training begins; ``research fit`` has
    both.
    """

    @cached_property
    def file(self) -> MetricsFile:
        """The metrics file."""
        return MetricsFile(self.log_dir)

    @property
    def experiment(self) -> Any:
        """The metrics file, which Lightning asks for when a trainer starts."""
        return self.file

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that wait; where a run has failed already, only report that it fails."""
        try:
            self.save()
        except MetricsError as error:
            if status == "success":
                raise
            log.error("%s; %d rows were not written", error, len(self.file.metrics))


class KeepMetrics(pl.Callback):
    """Puts the rows of every RunLogger into each checkpoint, and from there back into its file.

    Checkpoints hold the name of this class.
    """

    def __init__(self) -> None:
        self._files: list[MetricsFile] = []
        self._saved: list[str] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the files; the first rank alone writes and reads them."""
        found = [logger.file for logger in trainer.loggers if isinstance(logger, RunLogger)]
        self._files = found if trainer.is_global_zero else []

    def state_dict(self) -> dict[str, Any]:
        """Return the text of each file, every row included.

        Raises:
            MetricsError: a file cannot be written or read.
        """
        for file in self._files:
            file.save()
        return {"files": [file.text() for file in self._files]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the text until training starts: a run that fails before costs nothing."""
        self._saved = list(state_dict["files"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give each file the rows of the checkpoint; none where the run is new.

        With a checkpoint that has no rows each file keeps those up to the iteration of that.
        """
        for number, file in enumerate(self._files):
            if number < len(self._saved) or not trainer.ckpt_path:
                file.begin("".join(self._saved[number : number + 1]))
            else:
                file.cut(trainer.fit_loop.epoch_loop.total_batch_idx)
        self._saved = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where nothing is trained: begin a new file, numbered by the iterations learned from."""
        if trainer.state.fn != TrainerFn.FITTING:
            for file in self._files:
                file.begin("", step=int(getattr(pl_module, "iteration", 0)))

    on_test_start = on_validation_start


def _append(path: Path, text: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError:
        os.truncate(path, size)  # leave no half row
        raise


def _read(path: Path) -> str:
    """Return the text of a metrics file.

    Raises:
        ValueError: it is none, or a row of it is not whole.
    """
    text = path.read_bytes().decode("utf-8")
    whole = all(None not in (*row, *row.values()) for row in _rows(text))
    if text and not (whole and text.endswith("\n") and "step" in _names(text)):
        raise ValueError("it must be a table with a column step and whole rows")
    return text


def _names(text: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline="")), [])


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]], head: bool = False) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

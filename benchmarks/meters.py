"""What a step of training costs: seconds of each stage and memory, ours and TRL's alike."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytorch_lightning as pl
from transformers import TrainerCallback


class Stages:
    """Seconds of each stage of a step; what is timed inside another stage is not the outer's.

    Args:
        clock: process CPU seconds, or wall seconds on a GPU.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts = {"sampled": 0, "prefilled": 0}
        self._open: list[str] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what happens inside as this stage's."""
        start = self.clock()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            spent = self.clock() - start
            self.seconds[name] += spent
            if self._open:
                self.seconds[self._open[-1]] -= spent

    def take(self) -> dict[str, Any]:
        """What was counted since the last time."""
        found = {"stages": dict(self.seconds), **self.counts}
        self.seconds.clear()
        self.counts = dict.fromkeys(self.counts, 0)
        return found


class Meter:
    """What a step costs.

    Args:
        stages: of this side.
    """

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._base = 0.0

    def begin(self) -> None:
        """A step begins; the first time, remember the memory of before."""
        if not self._base:
            self._base = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now
        self._stages.take()
        self._start = self._stages.clock()

    def end(self) -> dict[str, Any]:
        """Seconds of the step, and MB at the peak so far beyond those before the first."""
        spent = self._stages.clock() - self._start
        return {"step": spent, "mb": _status("VmHWM") - self._base, **self._stages.take()}


class Gate(Meter):
    """A meter that waits for a line before each step and answers behind it.

    Args:
        stages: of this side.
        answers: where to write.
    """

    def __init__(self, stages: Stages, answers: TextIO) -> None:
        super().__init__(stages)
        self._answers = answers

    def begin(self) -> None:
        """Wait to be told."""
        self._say({"ready": True})
        if not sys.stdin.readline():
            raise SystemExit
        super().begin()

    def end(self) -> dict[str, Any]:
        """Tell what the step cost."""
        found = super().end()
        self._say(found)
        return found

    def _say(self, what: dict[str, Any]) -> None:
        self._answers.write(json.dumps(what) + "\n")
        self._answers.flush()


def _status(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


class Metered(pl.Callback):
    """Measures each step of Lightning's.

    Args:
        meter: begins and ends with a step.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.found: list[dict[str, Any]] = []
        """What each step cost."""

    def on_train_batch_start(self, *args: Any) -> None:
        """See Meter."""
        self._meter.begin()

    def on_train_batch_end(self, *args: Any) -> None:
        """See Meter."""
        self.found.append(self._meter.end())


class TheirMetered(TrainerCallback):
    """Measures each step of TRL's.

    Args:
        meter: begins and ends with a step.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.found: list[dict[str, Any]] = []
        """What each step cost."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """See Meter."""
        self._meter.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """See Meter."""
        self.found.append(self._meter.end())

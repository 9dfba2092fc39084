"""Requests to stop a run: SIGTERM, SIGHUP when its terminal goes, SLURM's before a time limit.

The run ends after the iteration that is running. Ended in the middle of one, it would lose the
rollouts that it has sampled.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from research_rl.trainers.lightning_internals import cluster_of

log = logging.getLogger(__name__)
_ENDS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals that end a process which does not listen; Windows knows no SIGHUP."""


def _heeded() -> list[signal.Signals]:
    """Those of _ENDS that are not ignored: ``nohup`` ignores SIGHUP, and means it."""
    return [number for number in _ENDS if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def sigterm_noted() -> Iterator[Callable[[str], None]]:
    """Yield a function that ends the run if it was to end in this block; the signal does not.

    SIGTERM and SIGHUP are heard.

    It takes what is said of the place where it ends.

    Raises:
        SIGTERMException: by that function; the exit status is 128 and the signal's number.
    """
    heard: list[int] = []

    def end_if_heard(what: str) -> None:
        if heard:
            rank_zero_info("%s: %s", signal.Signals(heard[0]).name, what)
            raise SIGTERMException(128 + heard[0])

    if threading.current_thread() is not threading.main_thread():
        yield end_if_heard
        return
    former = {
        number: signal.signal(number, lambda number, frame: heard.append(number))
        for number in _heeded()
    }
    try:
        yield end_if_heard
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class StopSignal:
    """Remembers that the process was asked to stop, until somebody looks.

    Lightning's own handlers are replaced while it listens: the one for SIGTERM ends a run in the
    middle of a validation, and the one for SLURM's warning saves in the middle of an iteration.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._former: dict[int, Any] = {}
        self._requeues = False

    def listen(self, trainer: pl.Trainer) -> None:
        """Replace the signal handlers; a signal that came before is not lost."""
        if trainer.received_sigterm:
            self._number = signal.SIGTERM
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = _heeded()
        cluster = cluster_of(trainer)
        if isinstance(cluster, SLURMEnvironment) and cluster.auto_requeue:
            self._requeues = True
            numbers.append(cluster.requeue_signal or signal.SIGUSR1)
        for number in numbers:
            self._former[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._number = number

    def heard(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was asked to stop; all of them must ask."""
        return trainer.strategy.reduce_boolean_decision(self._number is not None, all=False)

    def end(self, trainer: pl.Trainer) -> NoReturn:
        """End the run; where the signal was SLURM's warning, have the job queued again.

        Raises:
            SIGTERMException: always; the exit status is 128 and the signal's number.
        """
        number = self._number or signal.SIGTERM
        rank_zero_info(
            "%s: saved between two iterations; go on with the same command and `--ckpt_path last`",
            signal.Signals(number).name,
        )
        if self._requeues and number not in _ENDS and trainer.is_global_zero:
            _requeue()
        raise SIGTERMException(128 + number)

    def forget(self) -> None:
        """Restore the signal handlers that were there before."""
        for number, handler in self._former.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        self._former = {}


def _requeue() -> None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("the job %s could not be queued again: %s", job, error)

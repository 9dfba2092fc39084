"""Progress of a run: one bar from the first to the last iteration, with reward, F1 and searches.

Without a terminal there are lines in place of the bar: ``step 20 of 50, reward 0.41, f1 0.37``, and
within a long step ``sampling: 40 of 256 rollouts over, 21,300 tokens, 410 tokens/s``.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from research_rl.trainers.measures import CEILING

SHOWN = {
    "reward": "train/reward",
    "f1": "train/f1",
    "searches": "train/searches",
    "val f1": "val/f1",
}
"""Names behind the bar, and the metrics that they show."""
_BAR = tuple(f"{part}/{name}" for part in ("train", "val") for name in ("reward", "f1", "searches"))
_VALIDATED = ("f1", "em", "searches", "format")
_BY_HOP = re.compile(r"(\d+)hop")
_LOGGED_AT: WeakKeyDictionary[pl.LightningModule, dict[str, int]] = WeakKeyDictionary()
"""The iteration at which each metric of a module was last logged, by name."""


class RolloutPulse:
    """Signs of life while rollouts are sampled: a line after some seconds, then ever more rarely.

    It is told after each step of the environment (see ``Watch``). Where turns are long it is told
    nothing for minutes, so a thread of its own looks at the clock.

    Args:
        say: prints a line.
        seconds: until the first line; the time between two doubles up to six times that.
    """

    def __init__(self, say: Callable[[str], None], seconds: float = 10.0) -> None:
        self._say, self._seconds = say, seconds
        self._over = self._all = self._tokens = 0
        self._begin = 0.0
        self._ended: threading.Event | None = None

    def __call__(self, over: int, number: int, tokens: int) -> None:
        """Take note of how far the rollouts are; the first call begins, the last one ends."""
        if over == 0 and tokens == 0:
            self.end()
            self._begin, self._ended = time.monotonic(), threading.Event()
            threading.Thread(target=self._beat, args=(self._ended,), daemon=True).start()
        self._over, self._all, self._tokens = over, number, tokens
        if over == number:
            self.end()

    def end(self) -> None:
        """Say nothing more."""
        if self._ended is not None:
            self._ended.set()

    def line(self) -> str:
        """Return how far the rollouts are."""
        spent = time.monotonic() - self._begin
        facts = [f"sampling: {self._over} of {self._all} rollouts over"]
        if self._tokens:
            speed = self._tokens / spent if spent > 0 else 0.0
            facts.append(f"{self._tokens:,} tokens, {speed:,.0f} tokens/s")
        else:
            facts.append("no turn has ended yet")
        return ", ".join([*facts, f"{_clock(spent)} gone"])

    def _beat(self, ended: threading.Event) -> None:
        wait = self._seconds
        while not ended.wait(wait):
            self._say(self.line())
            wait = min(2 * wait, 6 * self._seconds)


class RunProgressBar(TQDMProgressBar):
    """One bar for the whole run in a terminal, or a line every few seconds without one.

    Every validation also leaves a line with its F1 and searches by number of hops.

    Args:
        every_n_seconds: how often a line is written if there is no terminal.
        refresh_rate: iterations between two refreshes of the bar; 0 shows nothing.
    """

    def __init__(self, every_n_seconds: float = 10.0, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.every_n_seconds = every_n_seconds
        self._lines = False
        self._begin = 0.0
        self._begin_done = 0
        self._last_line = -math.inf
        self._pulse = RolloutPulse(self._while_sampling, max(every_n_seconds, 1.0))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose between bar and lines; only rank zero shows anything."""
        super().setup(trainer, pl_module, stage)
        self._lines = self.is_enabled and not _is_interactive()
        if self._lines:
            self.disable()
        if (self._lines or self.is_enabled) and hasattr(pl_module, "watch"):
            setattr(pl_module, "watch", self._pulse)  # noqa: B010  (of ours, not of Lightning's)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End the lines about rollouts, also where the run has failed."""
        self._pulse.end()
        super().teardown(trainer, pl_module, stage)

    def _while_sampling(self, line: str) -> None:
        if self._lines:
            rank_zero_info(line)
        else:
            with suppress(TypeError):  # there is no such bar outside of a fit
                self.train_progress_bar.set_description(line.partition(" rollouts")[0])

    def on_train_start(self, *args: Any) -> None:
        """Start the bar at the iteration from which the run goes on."""
        super().on_train_start(*args)
        self._begin, self._begin_done = time.monotonic(), finished_iterations(self.trainer)
        bar = self.train_progress_bar
        bar.total, bar.initial = total_iterations(self.trainer), self._begin_done
        bar.n = self._begin_done
        bar.set_description("train")

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Keep the bar; Lightning would start a new one for each epoch."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Move the bar, or write a line if it is time for one."""
        done, total = finished_iterations(trainer), total_iterations(trainer)
        bar = self.train_progress_bar
        bar.set_description("train", refresh=False)
        if self._should_update(done, total or 0):
            bar.total, bar.n = total, done
            bar.set_postfix(self.get_metrics(trainer, pl_module))
        now = time.monotonic()
        if self._lines and (now - self._last_line >= self.every_n_seconds or done == total):
            self._last_line = now
            rank_zero_info(self._line(trainer, pl_module, done, total))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a line with the result of the validation."""
        super().on_validation_end(trainer, pl_module)
        learned = int(getattr(pl_module, "iteration", finished_iterations(trainer)))
        line = validation_line(trainer.callback_metrics, learned)
        if trainer.sanity_checking or not line:
            return
        if self._lines:
            rank_zero_info(line)
        elif self.is_enabled:
            self.print(line)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics behind the bar that have been logged so far."""
        known = trainer.callback_metrics
        return {name: f"{float(known[key]):.2f}" for name, key in SHOWN.items() if key in known}

    def _line(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, done: int, total: int | None
    ) -> str:
        spent = time.monotonic() - self._begin
        facts = [f"step {done}" + (f" of {total}" if total else "")]
        facts += [f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items()]
        facts.append(f"{_clock(spent)} gone")
        if total and done > self._begin_done:
            facts.append(f"{_clock(spent / (done - self._begin_done) * (total - done))} left")
        return ", ".join(facts)


def finished_iterations(trainer: pl.Trainer) -> int:
    """Return how many training batches the run has finished, including those before a resume.

    Call it between batches. Lightning's ``ready`` counts the batch that is running, too;
    ``global_step`` would not do, for it counts optimizer steps.
    """
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


def total_iterations(trainer: pl.Trainer) -> int | None:
    """Return how many training batches the run will have; None if there is no limit.

    ``max_steps`` counts optimizer steps, of which an iteration may take several.
    """
    limits: list[int] = []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and math.isfinite(batches):
        limits.append(trainer.max_epochs * int(batches))
    if trainer.max_steps > 0:
        done = finished_iterations(trainer)
        updates = trainer.global_step / done if done else 1.0  # optimizer steps of an iteration
        limits.append(math.ceil(trainer.max_steps / max(updates, 1.0)))
    return min(limits, default=None)


def validation_line(metrics: Mapping[str, Any], step: int) -> str:
    """Return the result of a validation as a line, by number of hops if known; "" if there is none.

    ``validation at step 20: f1 0.97 (1 hop 1.00, 2 hops 0.95), em 0.97, searches 1.50 ...``
    """
    facts = []
    for name in _VALIDATED:
        if f"val/{name}" in metrics:
            kinds = _by_hop(metrics, f"val/{name}_") if name in ("f1", "searches") else ""
            if name == "em" and (most := metrics.get(f"val/{CEILING}")) is not None:
                kinds = f" (ceiling {float(most):.2f})"
            facts.append(f"{name} {float(metrics[f'val/{name}']):.2f}{kinds}")
    return f"validation at step {step}: {', '.join(facts)}" if facts else ""


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Return metrics as lines, each a name and a number with four decimals."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name:<{width}}  {value:>9.4f}" for name, value in sorted(metrics.items()))


def _by_hop(metrics: Mapping[str, Any], prefix: str) -> str:
    kinds = {
        int(match[1]): float(value)
        for key, value in metrics.items()
        if key.startswith(prefix) and (match := _BY_HOP.fullmatch(key.removeprefix(prefix)))
    }
    each = (f"{hop} hop{'s' * (hop > 1)} {value:.2f}" for hop, value in sorted(kinds.items()))
    return f" ({', '.join(each)})" if kinds else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
        if minutes >= 60
        else (f"{minutes}:{rest:02d}")
    )


def _is_interactive() -> bool:
    return sys.stdout.isatty() or "ipykernel" in sys.modules


def log_iteration(module: pl.LightningModule, metrics: Mapping[str, float]) -> None:
    """Log metrics: for the progress bar and callbacks, and for the loggers.

    In training the loggers get them here and not through Lightning, at the number of iterations
    that the policy has learned from. Lightning would log a validation one iteration too early. It
    would also repeat old values of metrics that only some iterations have, such as the F1 of
    questions with three hops.

    Args:
        module: that is being trained, validated or tested; counts its ``iteration``.
        metrics: by name, ``train/f1`` for instance.
    """
    trainer: Any = module.trainer
    fitting = trainer.state.fn == TrainerFn.FITTING
    for name, value in metrics.items():
        module.log(name, value, prog_bar=name in _BAR, logger=not fitting)
    iteration = int(module.iteration)  # type: ignore[operator, arg-type, unused-ignore]
    note_logged(module, metrics, iteration)
    due = trainer.validating or (iteration + 1) % max(trainer.log_every_n_steps, 1) == 0
    if fitting and due and not trainer.sanity_checking:
        for logger in module.loggers:
            logger.log_metrics(dict(metrics), iteration)
            logger.save()


def note_logged(module: pl.LightningModule, names: Iterable[str], iteration: int) -> None:
    """Remember that metrics were logged for an iteration; see ``metrics_of``."""
    _LOGGED_AT.setdefault(module, {}).update(dict.fromkeys(names, iteration))


def metrics_of(
    trainer: pl.Trainer, module: pl.LightningModule, iteration: int
) -> dict[str, Tensor]:
    """Return ``trainer.callback_metrics`` without what was logged for another iteration alone.

    Lightning keeps the last value of each metric for ever, also of those that only some iterations
    have. Of a metric that is logged by neither this package's modules nor its callbacks nobody
    knows when it was logged: it stays.

    Args:
        trainer: of the run.
        module: that is being trained.
        iteration: the number of iterations that it had learned from before.
    """
    logged_at = _LOGGED_AT.get(module, {})
    known = trainer.callback_metrics
    return {n: value for n, value in known.items() if logged_at.get(n, iteration) == iteration}

"""A guard against collapse: it compares metrics with their early history and with fixed limits.

A rule is broken, for example, if the reward falls below 40 % of its median in the first iterations,
or if nineteen of twenty rollouts run out of tokens. The guard warns, and acts if asked to.
Decisions read means over all ranks only, so that every rank decides the same.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from research_rl.envs.system import lines_of, write_whole
from research_rl.trainers.callbacks import Curves, RunCallback, learns_from_rewards, run_folder
from research_rl.trainers.checkpoint import differences, reward_of
from research_rl.trainers.health.monitor import HealthMonitor, log_metrics
from research_rl.trainers.health.remedies import Snapshots, kl_coef, scale_kl, scale_learning_rate
from research_rl.trainers.health.rules import RULES, Rule
from research_rl.trainers.progress import metrics_of

log = logging.getLogger(__name__)

JOURNAL = "guard.jsonl"
"""File in the run's folder with one row for each warning or action."""
_MIN_HISTORY = 2  # values of a metric that are needed before it is judged
_VALIDATED = "val/"
"""Begin of the metrics that hold until the next validation; others are of one iteration."""
_PAID = "/reward"
"""End of the metrics that mean something else under another reward."""


class CollapseGuard(RunCallback):
    """Watches the health of a run, warns, and acts if asked to; needs a HealthMonitor before it.

    If a rule is broken for ``patience`` iterations in a row, the guard warns. If it may act, it
    rolls back first and then changes the learning rate and the KL. It writes the reasons to
    ``guard.jsonl``, and does not act again for ``cooldown`` iterations.

    A metric that was not measured in an iteration breaks no rule there. What the last validation
    found (``val/...``) holds until the next one. A run of a command that goes on with another
    reward forgets what rewards were early in it.

    Args:
        roll_back: load weights and optimizer of the last good snapshot; the questions go on.
        lr_factor: multiply the learning rate by this, below 1; None does not change it.
        kl_factor: multiply the algorithm's kl_coef by this, above 1; None does not change it.
        rules: None is all of ``research_rl.trainers.health.rules.RULES``.
        early: number of first iterations whose median the rules compare with.
        patience: iterations in a row for which a rule must be broken.
        cooldown: iterations after an action without another action.
        max_actions: actions in a run; after them the guard only warns.
        snapshot_every: healthy iterations between two snapshots, of which the last two are kept.
        margin: iterations that must lie between a snapshot and the first broken rule.

    Raises:
        ValueError: a number is out of its range.
    """

    label = "guard"

    def __init__(
        self,
        roll_back: bool = False,
        lr_factor: float | None = None,
        kl_factor: float | None = None,
        rules: list[Rule] | None = None,
        early: int = 5,
        patience: int = 2,
        cooldown: int = 3,
        max_actions: int = 5,
        snapshot_every: int = 5,
        margin: int = 1,
    ) -> None:
        super().__init__()
        _check(lr_factor, kl_factor, early, patience, snapshot_every)
        self.roll_back, self.lr_factor, self.kl_factor = roll_back, lr_factor, kl_factor
        self.rules: Sequence[Rule] = RULES if rules is None else rules
        self.early, self.patience, self.cooldown = early, patience, cooldown
        self.max_actions, self.snapshot_every = max_actions, snapshot_every
        self.margin = margin
        self._history: dict[str, list[float]] = {}
        self._streaks: dict[str, int] = {}
        self._actions = 0
        self._quiet_until = 0
        self._kl_coef: float | None = None
        self._kl_configured: float | None = None
        self._snapshots = Snapshots()
        self._validated: dict[str, float] = {}  # what the last validation found
        self._reward: dict[str, str] | None = None  # what rewards are made with
        self._forgot: list[str] = []

    @property
    def acts(self) -> bool:
        """Whether the guard may do more than warn."""
        return self.roll_back or self.lr_factor is not None or self.kl_factor is not None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there is a HealthMonitor, and a KL if it is to be raised.

        Raises:
            ValueError: there is no HealthMonitor before this callback, or the algorithm has no KL.
        """
        if stage != "fit":
            return
        self._reward = reward_of(trainer)
        every: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(c, HealthMonitor) for c in every[: every.index(self)]):
            raise ValueError(
                "CollapseGuard must stand behind a HealthMonitor in trainer.callbacks, got none "
                "before it; add research_rl.trainers.health.HealthMonitor"
            )
        algorithm: Any = pl_module.algorithm
        if self.kl_factor is not None and not (kl_coef(algorithm) or 0.0) > 0:
            raise ValueError(
                f"kl_factor must meet an algorithm with a kl_coef above 0, got "
                f"{type(algorithm).__name__} with {kl_coef(algorithm)}; set a small kl_coef, so "
                "that there is a reference to be near to, or leave kl_factor out"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue the journal of a resumed run or begin one; take a snapshot of the start."""
        module: Any = pl_module
        self._resume_kl(module.algorithm)
        if self._forgot and trainer.is_global_zero:
            log.warning(
                "early values of %s are forgotten, for the run goes on with another reward than it "
                "had; its next iterations are the early ones",
                ", ".join(self._forgot),
            )
        self._forgot = []
        if trainer.is_global_zero:
            _begin_journal(run_folder(trainer) / JOURNAL, module.iteration)
        if self.roll_back:
            self._snapshots.begin(run_folder(trainer) / "guard")
            if not self._snapshots.kept:
                self._snapshots.take_if_due(trainer, module.iteration, 0)

    def _resume_kl(self, algorithm: Any) -> None:
        """Put back what the guard has made of kl_coef, unless the config gives another one now."""
        if isinstance(getattr(algorithm, "kl_coef", None), Tensor):
            return  # a buffer, which the checkpoint has put back itself
        configured, former = kl_coef(algorithm), self._kl_configured
        known = (None, configured) if configured != self._kl_coef else (former,)
        if self._kl_coef is not None and former not in known:
            log.warning(
                "kl_coef is now %s, as the config says; the %.3g that the guard had made of %s no "
                "longer holds",
                configured,
                self._kl_coef,
                former,
            )
            self._kl_coef = None
        self._kl_configured = configured
        if self._kl_coef is not None:
            scale_kl(algorithm, self._kl_coef / (configured or 1.0))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what a validation of this run has found, until the next one."""
        module: Any = pl_module
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            logged = metrics_of(trainer, module, module.iteration)
            found = {n: value for n, value in logged.items() if n.startswith(_VALIDATED)}
            self._validated = _measured(self.rules, found)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Judge the iteration that just ended, and warn or act.

        Where a policy imitates, the health of its rollouts is that of the demonstrations, which
        others wrote: rules on it are passed over.
        """
        module: Any = pl_module
        step = module.iteration - 1
        others = (_VALIDATED,) if learns_from_rewards(module) else (_VALIDATED, "health/")
        logged = metrics_of(trainer, module, step)
        logged = {n: value for n, value in logged.items() if not n.startswith(others)}
        reasons = self.judge(self._validated | _measured(self.rules, logged))
        # a fixed limit warns: going back to a start that was ill already would not help
        fixed = {rule.name for rule in self.rules if rule.limit is not None}
        lasting = [r for name, r in reasons.items() if self._lasts(name) and name not in fixed]
        new = self.new_alarms(reasons)
        may = self.acts and self._actions < self.max_actions and step >= self._quiet_until
        if lasting and may:
            self._act(trainer, module, step, lasting)
        elif new:
            self._write(trainer, step, "warn", new)
        elif not reasons and self.roll_back:
            self._snapshots.take_if_due(trainer, module.iteration, self.snapshot_every)
        counts = {"guard/alarms": float(len(reasons)), "guard/actions": float(self._actions)}
        log_metrics(trainer, pl_module, counts)

    def judge(self, now: Mapping[str, float]) -> dict[str, str]:
        """Return the broken rules with their reasons; also count streaks and extend the history.

        Args:
            now: the metrics of the next iteration, by the names in the rules.
        """
        known = {name: past for name, past in self._history.items() if len(past) >= _MIN_HISTORY}
        early = {name: median(past) for name, past in known.items()}
        reasons: dict[str, str] = {}
        for rule in self.rules:
            reason = rule.broken(now, early)
            self._streaks[rule.name] = self._streaks.get(rule.name, 0) + 1 if reason else 0
            if reason:
                reasons[rule.name] = reason
        broken = {r.metric for r in self.rules if r.limit is None and r.name in reasons}
        for name, value in now.items():
            past = self._history.setdefault(name, [])
            # a metric that has no history yet gets one, unless it is what is broken
            if broken and (name in broken or len(past) >= _MIN_HISTORY):
                continue
            # after an action, new values are not early any more and may be part of the collapse
            if len(past) < (_MIN_HISTORY if self._actions else self.early):
                past.append(value)
        return reasons

    def new_alarms(self, reasons: Mapping[str, str]) -> list[str]:
        """Return the reasons of rules whose streak has just reached ``patience`` iterations."""
        return [r for name, r in reasons.items() if self._streaks[name] == self.patience]

    def _lasts(self, name: str) -> bool:
        return self._streaks[name] >= self.patience

    def _act(self, trainer: pl.Trainer, module: Any, step: int, reasons: Sequence[str]) -> None:
        """Roll back, lower the learning rate and raise the KL, as far as it is asked for."""
        done: dict[str, Any] = {}
        if self.roll_back:
            sick = max(self._streaks.values())
            former = kl_coef(module.algorithm)
            done["back_to"] = self._snapshots.restore(trainer, step + 1 - sick - self.margin)
            if former:  # if it is a buffer, the snapshot has put back its old value
                scale_kl(module.algorithm, former / (kl_coef(module.algorithm) or former))
        if self.lr_factor is not None:
            done["lr"] = scale_learning_rate(trainer, self.lr_factor)
        if self.kl_factor is not None:
            self._kl_coef = done["kl_coef"] = scale_kl(module.algorithm, self.kl_factor)
        self._actions += 1
        self._quiet_until = step + 1 + self.cooldown
        self._streaks = dict.fromkeys(self._streaks, 0)
        self._write(trainer, step, "act", reasons, done)

    def _write(
        self,
        trainer: pl.Trainer,
        step: int,
        kind: str,
        reasons: Sequence[str],
        done: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a warning or an action to the log and the journal, on rank zero."""
        if not trainer.is_global_zero:
            return
        changes = ", ".join(f"{name} {value:.3g}" for name, value in (done or {}).items())
        log.warning("step %d: %s%s", step, "; ".join(reasons), changes and f" -> {changes}")
        row = {"step": step, "kind": kind, "reasons": list(reasons), **(done or {})}
        self.written = run_folder(trainer) / JOURNAL
        with self.written.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what the guard does next."""
        return {
            "history": {name: list(past) for name, past in self._history.items()},
            "streaks": dict(self._streaks),
            "actions": self._actions,
            "quiet_until": self._quiet_until,
            "kl_coef": self._kl_coef,
            "kl_configured": self._kl_configured,
            "snapshots": self._snapshots.state(),
            "validated": dict(self._validated),
            "reward": self._reward,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if the run had not been stopped."""
        self._history = {name: list(past) for name, past in state_dict["history"].items()}
        self._streaks = dict(state_dict["streaks"])
        self._actions = state_dict["actions"]
        self._quiet_until = state_dict["quiet_until"]
        self._kl_coef = state_dict["kl_coef"]
        self._kl_configured = state_dict.get("kl_configured")
        self._snapshots.load(state_dict["snapshots"])
        self._validated = dict(state_dict.get("validated", {}))
        if differences(state_dict.get("reward"), self._reward):
            self._forget_rewards()

    def _forget_rewards(self) -> None:
        """Drop what was measured under another reward, and the streaks that it made."""
        self._forgot = sorted(name for name in self._history if name.endswith(_PAID))
        for kept in (self._history, self._validated):
            for name in [name for name in kept if name.endswith(_PAID)]:
                del kept[name]
        for rule in self.rules:
            if rule.metric.endswith(_PAID) or (rule.unless_below or "").endswith(_PAID):
                self._streaks[rule.name] = 0


def would_have_warned(
    metrics: Curves, guard: CollapseGuard | None = None
) -> list[tuple[int, list[str]]]:
    """Return the steps at which a guard would have warned in a run, each with the reasons.

    Args:
        metrics: of the run, from ``read_metrics``; a rule whose metric was not logged is skipped.
        guard: a new one, whose rules and patience are used; None is one without arguments.
    """
    watch = guard or CollapseGuard()
    rows: dict[int, dict[str, float]] = {}
    for name in _names(watch.rules) & metrics.keys():
        for step, value in zip(*metrics[name], strict=True):
            rows.setdefault(step, {})[name] = value
    validations = {s for n in metrics if n.startswith(_VALIDATED) for s in metrics[n].steps}
    iterations = {s for n in metrics if not n.startswith(_VALIDATED) for s in metrics[n].steps}
    warned, validated = [], dict[str, float]()
    for step in sorted(validations | iterations):
        now = {n: value for n, value in rows.get(step, {}).items() if math.isfinite(value)}
        if step in validations:
            validated = {n: value for n, value in now.items() if n.startswith(_VALIDATED)}
        # behind the last iteration there is a validation alone, which no guard judges
        if step in iterations and (new := watch.new_alarms(watch.judge(validated | now))):
            warned.append((step, new))
    return warned


def _names(rules: Sequence[Rule]) -> set[str]:
    return {name for rule in rules for name in (rule.metric, rule.unless_below) if name}


def _measured(rules: Sequence[Rule], logged: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the metrics that rules read, without those that are nan: means over no rollout."""
    values = {name: float(logged[name]) for name in _names(rules) if name in logged}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _check(
    lr_factor: float | None, kl_factor: float | None, early: int, patience: int, every: int
) -> None:
    if lr_factor is not None and not 0 < lr_factor < 1:
        raise ValueError(f"lr_factor must lie between 0 and 1, got {lr_factor}; null leaves the lr")
    if kl_factor is not None and not kl_factor > 1:
        raise ValueError(f"kl_factor must be above 1, got {kl_factor}; null leaves the KL")
    for name, value, least in (
        ("early", early, _MIN_HISTORY),
        ("patience", patience, 1),
        ("snapshot_every", every, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _begin_journal(path: Path, iteration: int) -> None:
    """Remove the rows of iterations that are still to come; all of them in a new run."""
    if not path.is_file():
        return
    rows = [line for line in lines_of(path.read_text(encoding="utf-8")) if line.endswith("}")]
    kept = [row for row in rows if json.loads(row)["step"] < iteration]
    write_whole(path, (f"{row}\n" for row in kept))

"""Options of optimizer and scheduler in a run that goes on: those of the config are put in force.

A restored optimizer has the options of its checkpoint, for torch keeps them with its moments: a run
that was begun with ``lr: 1e-3`` and goes on with ``lr: 1e-6`` would train with 1e-3. So every
checkpoint says what the config had asked for, and what it asks for now is compared with that.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

log = logging.getLogger(__name__)
KEY = "optimizer_options"
"""In a checkpoint: the record of what the config had asked for."""
OptimizerNote: TypeAlias = dict[str, Any]
"""What a config asked for: classes and options of optimizer and scheduler, as plain values."""
Scheduler: TypeAlias = Any
MakeScheduler: TypeAlias = Callable[[Optimizer], Scheduler]
_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
"""Options of a parameter group that schedulers add."""
_PROGRESS = frozenset(
    ("last_epoch", "base_lrs", "_last_lr", "T_cur", "T_i", "lr_lambdas", "_schedulers")
)
"""What a scheduler's state holds beside its settings."""


class ResumedOptimizer:
    """Makes the optimizer and the scheduler of a run, and keeps what a checkpoint says of them.

    Args:
        make_optimizer: of the config; takes the parameters.
        make_scheduler: of the config; takes the optimizer. None keeps the learning rate.
    """

    def __init__(
        self,
        make_optimizer: Callable[[Iterable[Parameter]], Optimizer],
        make_scheduler: MakeScheduler | None,
    ) -> None:
        self._make_optimizer, self._make_scheduler = make_optimizer, make_scheduler
        self._now: OptimizerNote | None = None
        self._loaded: dict[str, Any] | None = None

    def make(self, parameters: list[Parameter]) -> tuple[Optimizer, Scheduler]:
        """Return what the config asks for; the scheduler may be None.

        Raises:
            ValueError: the scheduler needs a metric, and there is none inside an iteration; or a
                checkpoint was loaded that holds the moments of another class of optimizer.
        """
        optimizer = self._make_optimizer(parameters)
        self._now = _options_of(optimizer)
        scheduler = None
        if self._make_scheduler is not None:
            scheduler = self._make_scheduler(optimizer)
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    "lr_scheduler must depend on the step alone, got ReduceLROnPlateau; choose one "
                    "of torch.optim.lr_scheduler that needs no metric, LinearLR for instance"
                )
            self._now = _with_scheduler(self._now, scheduler)
        if self._loaded is not None and (before := self._loaded.get(KEY)) is not None:
            _check_class(self._now, before)
            if _class_of(before) != _class_of(self._now):
                self._loaded["lr_schedulers"] = []  # the state of another class means nothing here
        return optimizer, scheduler

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write into a checkpoint what its state was made with: what the config asks for.

        Before ``put_in_force`` that is what the run had before, for the state is still that.
        """
        note = self._now if self._loaded is None else self._loaded.get(KEY)
        if note is not None:
            checkpoint[KEY] = note

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take a checkpoint whose state is about to be restored."""
        self._loaded = checkpoint

    def put_in_force(self, trainer: pl.Trainer) -> None:
        """Put what the config has changed over the restored state, and say what holds from now on.

        Raises:
            ValueError: a changed schedule ends before the step that the run has reached.
        """
        loaded, self._loaded = self._loaded, None
        if loaded is None or self._now is None:
            return
        (optimizer,) = trainer.optimizers
        configs = trainer.lr_scheduler_configs
        scheduler = configs[0].scheduler if configs else None
        guarded = _is_guarded(loaded)
        before = loaded.get(KEY) or _former_options(optimizer, scheduler, self._now, guarded)
        said, new = _put_over(
            optimizer, self._make_scheduler, self._now, before, trainer.global_step
        )
        if new is not None:
            configs[0].scheduler = new
        rate, wanted = optimizer.param_groups[0]["lr"], self._now["groups"][0]["lr"]
        if said and trainer.is_global_zero:
            log.warning(
                "the run goes on with other options of its optimizer than it had: %s; its moments "
                "are the checkpoint's, and the learning rate of the next update is %g",
                "; ".join(said),
                rate,
            )
        held = optimizer.param_groups[0].get("initial_lr", rate)
        if KEY not in loaded and guarded and held != wanted and trainer.is_global_zero:
            log.warning(
                "the learning rate goes on as the checkpoint has it, %g, for a guard has changed "
                "it; the checkpoint is of an older version, which did not note what the config "
                "asked for, so lr %g of this config is not put in its place",
                rate,
                wanted,
            )


def _is_guarded(checkpoint: dict[str, Any]) -> bool:
    """Whether a guard has acted in the run of a checkpoint."""
    states = checkpoint.get("callbacks", {}).values()
    return any(isinstance(state, dict) and state.get("actions") for state in states)


def _class_of(record: OptimizerNote) -> str | None:
    scheduler = record["scheduler"]
    return str(scheduler["class"]) if scheduler else None


def _options_of(optimizer: Optimizer) -> OptimizerNote:
    """Return the record of an optimizer that was just made, before a scheduler is made for it.

    Its class, and the options of each parameter group as plain values.
    """
    groups = [
        {name: _plain(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return {"class": _name(type(optimizer)), "groups": groups, "scheduler": None, "begun": groups}


def _with_scheduler(record: OptimizerNote, scheduler: Scheduler) -> OptimizerNote:
    """Return the record with a scheduler that was just made for the optimizer."""
    return {
        **record,
        "scheduler": _described(scheduler),
        "begun": _options_of(scheduler.optimizer)["groups"],
    }


def _check_class(now: OptimizerNote, before: OptimizerNote | None) -> None:
    """Refuse an optimizer of another class than the one whose moments a checkpoint holds.

    Args:
        now: the record of the optimizer.
        before: that of the checkpoint; None if it has none.

    Raises:
        ValueError: it is another class.
    """
    if before is not None and now["class"] != before["class"]:
        raise ValueError(
            f"model.optimizer must be {before['class']}, whose moments the checkpoint holds, got "
            f"{now['class']}; keep it, or begin another run from the weights alone: research "
            "export --ckpt CHECKPOINT --out FOLDER, then research fit --model.policy.model FOLDER "
            "without --ckpt_path"
        )


def _put_over(
    optimizer: Optimizer,
    make_scheduler: MakeScheduler | None,
    now: OptimizerNote,
    before: OptimizerNote,
    steps: int,
) -> tuple[list[str], Scheduler]:
    """Give a restored optimizer the options that the config has changed; its moments stay.

    If the learning rate or the scheduler is another one, the schedule is that of a run which had
    them from its beginning, at this step.

    Args:
        optimizer: with the state of the checkpoint.
        make_scheduler: of the config.
        now: the record of what the config makes.
        before: the record in the checkpoint, or what ``_former_options`` made of its state.
        steps: optimizer steps taken.

    Returns:
        The changes, as "lr: 0.001 -> 1e-06", none where there is none; and the scheduler that is to
        be used from now on, None if the one that was restored goes on.

    Raises:
        ValueError: the schedule is over after fewer steps.
    """
    said, names = _changed_options(now["groups"], before["groups"])
    of_schedule = _changed_schedule(now, before)
    scheduled = {"lr", *_touched(now), *_touched(before)}
    if not of_schedule and not scheduled & names:
        for group, options in zip(optimizer.param_groups, now["groups"], strict=True):
            group.update({name: _restored(group.get(name), options[name]) for name in names})
        return said, None
    for group, options in zip(optimizer.param_groups, now["groups"], strict=True):
        for name in _OF_SCHEDULERS:
            group.pop(name, None)
        group.update({name: _restored(group.get(name), value) for name, value in options.items()})
    scheduler = None if make_scheduler is None else _at(make_scheduler, optimizer, steps)
    return said + of_schedule, scheduler


def _former_options(
    optimizer: Optimizer, scheduler: Scheduler, now: OptimizerNote, keeps_rate: bool
) -> dict[str, Any]:
    """Return what a checkpoint without a record was made with, as far as its state tells.

    Args:
        optimizer: restored.
        scheduler: restored; None if there is none.
        now: the record of what the config makes.
        keeps_rate: whether the state's learning rate is kept because something other than the
            config, such as a guard, has changed it.
    """
    groups = []
    moved = _touched(now)  # by the scheduler, so that their state tells nothing
    held = _options_of(optimizer)["groups"]
    for group, options, begun in zip(held, now["groups"], now["begun"], strict=True):
        former = {n: value if n in moved else group.get(n, value) for n, value in options.items()}
        rate = group.get("initial_lr", group["lr"])
        same = keeps_rate or rate == begun.get("initial_lr", begun["lr"])
        former["lr"] = options["lr"] if same else rate
        groups.append(former)
    return {
        "class": now["class"],
        "groups": groups,
        "scheduler": _former_scheduler(optimizer, scheduler, now["scheduler"], keeps_rate),
        "begun": None,
    }


def _former_scheduler(
    optimizer: Optimizer, scheduler: Scheduler, now: OptimizerNote | None, keeps_rate: bool
) -> dict[str, Any] | None:
    """The record of the scheduler of a checkpoint without one; settings that are not told: now's.

    A scheduler leaves ``initial_lr`` in the optimizer's options, which the checkpoint holds.
    """
    if "initial_lr" not in optimizer.param_groups[0]:
        return None
    if now is None or scheduler is None:
        return {"class": "a scheduler", "settings": {}, "functions": [], "parts": []}
    held = _described(scheduler)["settings"]
    settings = {
        name: value if name.startswith("_") else held.get(name, value)
        for name, value in now["settings"].items()
    }
    if keeps_rate and "eta_min" in settings:  # a guard scales it with the rate
        settings["eta_min"] = now["settings"]["eta_min"]
    return {**now, "settings": settings}


def _changed_options(
    now: list[dict[str, Any]], before: list[dict[str, Any]]
) -> tuple[list[str], set[str]]:
    said: dict[str, None] = {}
    names = set()
    for group, former in zip(now, before, strict=True):
        for name, value in group.items():
            if name in former and former[name] != value:
                said[f"{name}: {_shown(former[name])} -> {_shown(value)}"] = None
                names.add(name)
    return list(said), names


def _changed_schedule(now: OptimizerNote, before: OptimizerNote) -> list[str]:
    new, old = now["scheduler"], before["scheduler"]
    if new is None or old is None or new["class"] != old["class"]:
        names = ["none" if one is None else one["class"] for one in (old, new)]
        return [] if new is old is None else [f"lr_scheduler: {names[0]} -> {names[1]}"]
    found = [
        f"lr_scheduler.{name}: {_shown(old['settings'][name])} -> {_shown(value)}"
        for name, value in new["settings"].items()
        if name in old["settings"] and old["settings"][name] != value
    ]
    if new["functions"] != old["functions"] or new["parts"] != old["parts"]:
        found.append("lr_scheduler: the same class with other functions or parts")
    if not found and before["begun"] is not None and before["groups"] == now["groups"]:
        for group, former in zip(now["begun"], before["begun"], strict=True):
            found += [
                f"lr_scheduler, {name} at its start: {_shown(former.get(name))} -> {_shown(value)}"
                for name, value in group.items()
                if former.get(name) != value
            ]
    return found


def _touched(record: OptimizerNote) -> set[str]:
    """Options of the optimizer that its scheduler changes, such as the betas of OneCycleLR."""
    if record["begun"] is None:
        return set()
    pairs = zip(record["groups"], record["begun"], strict=True)
    return {n for made, begun in pairs for n, value in made.items() if begun.get(n) != value}


def _at(make_scheduler: MakeScheduler, optimizer: Optimizer, steps: int) -> Scheduler:
    """A new scheduler as it is after ``steps`` steps."""
    scheduler = make_scheduler(optimizer)
    with warnings.catch_warnings():
        # true of every step of this loop, and meant so
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\)` before.*")
        for step in range(steps):
            try:
                scheduler.step()
            except ValueError as error:
                raise ValueError(
                    f"model.lr_scheduler must reach beyond the {steps} optimizer steps that the "
                    f"checkpoint has taken, got {type(scheduler).__name__}, which ends at {step} "
                    f"({error}); give it more steps, or leave it as it was"
                ) from error
    return scheduler


def _described(scheduler: Scheduler) -> dict[str, Any]:
    """What a scheduler was made with: its class, settings, functions and the schedulers in it."""
    settings = {
        name: _plain(value)
        for name, value in scheduler.state_dict().items()
        if name not in _PROGRESS
    }
    return {
        "class": _name(type(scheduler)),
        "settings": settings,
        "functions": [_plain(one) for one in getattr(scheduler, "lr_lambdas", ())],
        "parts": [_described(part) for part in getattr(scheduler, "_schedulers", ())],
    }


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _plain(value: Any) -> Any:
    """A value as numbers, texts and lists of them, which can be compared and saved anywhere."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return [_name(type(value)), _plain(vars(value) if hasattr(value, "__dict__") else repr(value))]


def _restored(held: Any, value: Any) -> Any:
    """A plain value in the form in which a parameter group holds it."""
    if isinstance(held, Tensor):
        return torch.tensor(value, dtype=held.dtype, device=held.device)
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

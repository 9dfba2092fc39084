"""The callback SignalCheck: it says why an iteration taught nothing, in the log and in a file.

``research fit`` adds it to every run. A config that lists one chooses what it does::

    trainer: {callbacks+: [{class_path: SignalCheck, init_args: {action: stop}}]}
"""

from __future__ import annotations

import json
import logging
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from research_rl.envs.system import lines_of, write_whole
from research_rl.trainers.callbacks import (
    RunCallback,
    cosmetic,
    learns_from_rewards,
    rollouts_of,
    run_folder,
)
from research_rl.trainers.collect import payments
from research_rl.trainers.distributed import gather
from research_rl.trainers.health.signal import (
    SignalVerdict,
    Tally,
    as_row,
    message,
    tally,
    verdicts,
    verdicts_of_imitation,
)
from research_rl.trainers.progress import metrics_of
from research_rl.trainers.sampler import learner_dtype

log = logging.getLogger(__name__)

SIGNAL_JOURNAL = "signal.jsonl"
"""The iterations with a verdict, one row each, in the run's folder."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of a number, the integers that its bits are read as."""
_READ = ("grad_norm", "mismatch_mean", "mismatch_5pct")
SAME_WEIGHTS = (
    "the policy's weights are bit for bit those that the run began with: nothing was learned"
)


class NothingToLearnError(ValueError):
    """An iteration taught nothing, and the run was asked to stop then."""


class SignalCheck(RunCallback):
    """Says after an iteration why there was nothing to learn from it; silent in a healthy run.

    Where rewards teach nothing (``research sft``) it looks at the gradient alone.

    Args:
        action: warn, or stop the run with an error.
        every_n_steps: iterations after which a verdict that stays the same is said again; each is
            in ``signal.jsonl``.

    Raises:
        ValueError: ``action`` is another, or ``every_n_steps`` is not positive.
    """

    label = "signal check"

    def __init__(self, action: Literal["warn", "stop"] = "warn", every_n_steps: int = 10) -> None:
        super().__init__()
        if action not in ("warn", "stop"):
            raise ValueError(f"action must be warn or stop, got {action!r}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.action, self.every_n_steps = action, every_n_steps
        self._said: tuple[str, ...] = ()
        self._since = 0
        self._start: int | None = None
        self._first: float | None = None
        self._module: pl.LightningModule | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep a fingerprint of the weights; a resumed run has that of its own beginning."""
        self._module = pl_module
        if self._start is None:
            self._start = fingerprint(pl_module)
        if trainer.is_global_zero:
            with cosmetic("cut the verdicts of the signal check"):
                _cut(run_folder(trainer) / SIGNAL_JOURNAL, _iteration(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Judge the iteration that just ended.

        Raises:
            NothingToLearnError: there is a verdict, and ``action`` is stop.
        """
        module: Any = pl_module
        iteration = _iteration(trainer, module)
        logged = metrics_of(trainer, pl_module, iteration - 1)
        metrics = {n: float(logged[f"train/{n}"]) for n in _READ if f"train/{n}" in logged}
        if not learns_from_rewards(pl_module):
            self._tell(trainer, verdicts_of_imitation(metrics), iteration)
            return
        rollouts = rollouts_of(pl_module, "train_rollouts")
        own = tally(rollouts, payments(rollouts, getattr(module, "price", None)))
        found = verdicts(
            reduce(add, gather([own]), Tally()),
            metrics,
            likely_causes(pl_module),
            is_corrected(pl_module),
            self._before(pl_module, metrics),
            compares_groups=getattr(getattr(module, "algorithm", None), "needs_groups", True),
            credits_turns=getattr(module, "credit", None) is not None,
        )
        self._tell(trainer, found, iteration)

    def _before(self, module: Any, metrics: dict[str, float]) -> float | None:
        """The mismatch of this run's first iteration, where servers sample with newest weights."""
        ahead = getattr(getattr(module, "updates", None), "async_rollouts", 0)
        if ahead or not getattr(getattr(module, "engine", None), "holds_weights", False):
            return None
        if self._first is None:
            self._first = metrics.get("mismatch_mean")
            return None
        return self._first

    def _tell(self, trainer: pl.Trainer, found: list[SignalVerdict], iteration: int) -> None:
        names = tuple(one.name for one in found)
        new = not set(names) <= set(self._said)
        due = new or iteration - self._since >= self.every_n_steps
        if found and due:
            self._since = iteration
            if trainer.is_global_zero and self.action == "warn":
                log.warning("%s", message(found, iteration))
        self._said = names
        if found and trainer.is_global_zero:
            with cosmetic("write the verdict of the signal check"):
                self.written = run_folder(trainer) / SIGNAL_JOURNAL
                self.written.parent.mkdir(parents=True, exist_ok=True)
                with self.written.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(as_row(found, iteration)) + "\n")
        if found and self.action == "stop":
            raise NothingToLearnError(message(found, iteration))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say if the weights are those of the start."""
        same = self._start is not None and fingerprint(pl_module) == self._start
        if same and trainer.is_global_zero and trainer.global_step:
            log.warning("%s", SAME_WEIGHTS)

    def state_dict(self) -> dict[str, Any]:
        """Return fingerprints of the start and of now, which ``research export`` compares."""
        now = None if self._module is None else fingerprint(self._module)
        return {"start": self._start, "now": now, "first_mismatch": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the fingerprint of the run's beginning."""
        self._start, self._first = state_dict.get("start"), state_dict.get("first_mismatch")


def _iteration(trainer: pl.Trainer, module: Any) -> int:
    return int(getattr(module, "iteration", trainer.global_step))


def _cut(path: Path, learned: int) -> None:
    """Remove the verdicts of iterations that a resumed run makes again; of a new run, all."""
    if path.is_file():
        rows = [row for row in lines_of(path.read_text(encoding="utf-8")) if row.endswith("}")]
        kept = [row for row in rows if json.loads(row)["iteration"] <= learned]
        write_whole(path, (f"{row}\n" for row in kept))


@torch.no_grad()
def fingerprint(module: nn.Module) -> int:
    """Return a number that changes when a trained weight does: the sum of their bits.

    Of weights in shards it is the sum over all ranks, which every rank must ask for.
    """
    total = 0
    for parameter in module.parameters():
        if parameter.requires_grad:
            local: Tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            flat = local.detach().flatten()
            bits = flat.view(_BITS[flat.element_size()])
            total += int(bits.sum(dtype=torch.int64)) + 31 * int(bits[::2].sum(dtype=torch.int64))
    sharded = any(isinstance(p, DTensor) for p in module.parameters())
    return sum(gather([total])) if sharded else total


def likely_causes(module: Any) -> list[str]:
    """Return what in this run may set sampled and recomputed log-probs apart."""
    engine, updates = getattr(module, "engine", None), getattr(module, "updates", None)
    causes = []
    if getattr(engine, "holds_weights", False):
        causes.append("servers whose weights are older than the policy's, or were not taken over")
    if (dtype := getattr(engine, "dtype", None)) is not None:
        causes.append(f"rollouts are sampled in {str(dtype).removeprefix('torch.')}")
    policy = getattr(module, "policy", None)
    device = getattr(policy, "device", torch.device("cpu"))
    precision = getattr(getattr(module, "trainer", None), "precision", None)
    if updates is not None and (dtype := learner_dtype(updates, device, precision)) is not None:
        causes.append(f"the learner computes in {str(dtype).removeprefix('torch.')}")
    layers = policy.modules() if isinstance(policy, nn.Module) else ()
    if any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in layers):
        causes.append("the model has dropout")
    return causes


def is_corrected(module: Any) -> bool:
    """Whether the loss weighs sampled tokens by an importance correction."""
    return getattr(getattr(module, "algorithm", None), "correction", None) is not None

"""The callback that sends pictures and sample rollouts to W&B, MLflow and TensorBoard.

The numbers go to every logger anyway. What is drawn (learning curve, health) and what the policy
wrote lies in the run's folder, where somebody who looks at a service does not see it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from research_rl.agents import Rollout
from research_rl.trainers.callbacks.base import RunCallback, learned_iterations

log = logging.getLogger(__name__)


class SendAlong(pl.Callback):
    """Sends a run's pictures and some validation rollouts to the loggers that take them.

    After each validation and at the end of a fit. ``research fit`` has one where a config lists
    WandbLogger, MLFlowLogger or TensorBoardLogger and no SendAlong. A logger that does not take
    them gets no more, and the run goes on.

    Args:
        num_rollouts: of each validation; 0 sends none.
        pictures: whether what LearningCurve and HealthMonitor draw is sent.

    Raises:
        ValueError: ``num_rollouts`` is negative.
    """

    def __init__(self, num_rollouts: int = 4, pictures: bool = True) -> None:
        super().__init__()
        if num_rollouts < 0:
            raise ValueError(f"num_rollouts must be at least 0, got {num_rollouts}")
        self.num_rollouts, self.pictures = num_rollouts, pictures
        self._failed: set[int] = set()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the pictures as they are now, and rollouts of this validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._send(trainer, pl_module, rollouts=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the pictures of the whole run."""
        self._send(trainer, pl_module, rollouts=False)

    def _send(self, trainer: pl.Trainer, pl_module: pl.LightningModule, rollouts: bool) -> None:
        if not trainer.is_global_zero:
            return
        step = learned_iterations(trainer, pl_module)
        pictures = _pictures(trainer) if self.pictures else []
        held = getattr(pl_module, "val_rollouts", ()) if rollouts else ()
        texts = [sample_text(one) for one in held[: self.num_rollouts]]
        for logger in trainer.loggers:
            send = next((to for kind, to in _SENDERS if isinstance(logger, kind)), None)
            if send is None or id(logger) in self._failed:
                continue
            try:
                send(logger, pictures, texts, step)
            except Exception as error:  # whatever a service of somebody else raises
                self._failed.add(id(logger))
                log.warning(
                    "%s gets no more pictures and rollouts: %s; they are in the run's folder",
                    *(type(logger).__name__, " ".join(str(error).split()) or type(error).__name__),
                )


def takes_more_than_numbers(loggers: Sequence[Logger]) -> bool:
    """Whether one of these loggers shows pictures and texts."""
    return any(isinstance(logger, kind) for logger in loggers for kind, _ in _SENDERS)


def sample_text(rollout: Rollout) -> str:
    """Return a rollout as plain text: question, turns with their results, reward, right answers."""
    parts = [f"Question: {rollout.question.text}", ""]
    results = [*rollout.results, *[""] * len(rollout.turns)]
    for turn, result in zip(rollout.whole_turns, results, strict=False):
        parts += [turn.strip(), *([result.strip()] if result else [])]
    right = " | ".join(rollout.question.answers)
    parts += [
        "",
        f"Reward: {rollout.reward.value:.2f}, F1: {rollout.reward.f1:.2f}",
        f"Right: {right}",
    ]
    return "\n".join(parts)


def _pictures(trainer: pl.Trainer) -> list[Path]:
    every: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    drawn = [c.written for c in every if isinstance(c, RunCallback) and c.written is not None]
    return [path for path in drawn if path.suffix == ".png" and path.is_file()]


def _to_wandb(logger: Any, pictures: list[Path], texts: list[str], step: int) -> None:
    for path in pictures:
        logger.log_image(path.stem, [str(path)])
    if texts:
        rows = [[step, text] for text in texts]
        logger.log_text("rollouts", columns=["iteration", "rollout"], data=rows)


def _to_mlflow(logger: Any, pictures: list[Path], texts: list[str], step: int) -> None:
    for path in pictures:
        logger.experiment.log_artifact(logger.run_id, str(path))
    if texts:
        name = f"rollouts/{step:06d}.txt"
        logger.experiment.log_text(logger.run_id, "\n\n\n".join(texts), name)


def _to_tensorboard(logger: Any, pictures: list[Path], texts: list[str], step: int) -> None:
    from matplotlib.image import imread

    for path in pictures:
        logger.experiment.add_image(path.stem, imread(path)[..., :3], step, dataformats="HWC")
    for place, text in enumerate(texts):
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        logger.experiment.add_text(f"rollouts/{place}", indented, step)


_SENDERS: list[tuple[type, Callable[[Any, list[Path], list[str], int], None]]] = [
    (WandbLogger, _to_wandb),
    (MLFlowLogger, _to_mlflow),
    (TensorBoardLogger, _to_tensorboard),
]

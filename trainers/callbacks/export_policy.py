"""The callback that writes the trained policy as a Hugging Face folder at the end of a fit.

The quickstart uses it: ``research ask`` then finds the policy in ``runs/quickstart/policy``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl

from research_rl.trainers.callbacks.base import RunCallback, run_folder
from research_rl.trainers.checkpoint import ExportError, save_policy


class ExportPolicy(RunCallback):
    """Writes the policy as a plain Hugging Face folder when training has ended.

    ``research_rl.json`` in it says in which protocol and with which prompt it is to be asked. It is
    the policy of the last iteration; ``research export`` makes one of any checkpoint.

    Args:
        folder: below the run's folder, or an absolute path; what is there is replaced.
    """

    label = "policy"

    def __init__(self, folder: str = "policy") -> None:
        super().__init__()
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder whole or not at all.

        Raises:
            ExportError: the disk does not take it; the checkpoints are untouched.
        """
        module: Any = pl_module
        with getattr(module, "whole_policy", nullcontext)():
            if not trainer.is_global_zero:
                return
            target = run_folder(trainer) / self.folder
            try:
                told = [getattr(module, name, None) for name in ("env_config", "sampling")]
                save_policy(module.policy, target, *told)
            except ExportError as error:
                raise ExportError(
                    f"{error}, then run `research export --ckpt ... --out ...` on the last "
                    "checkpoint"
                ) from error
            self.written = target

"""The base model of a run: whether the weights in its folder are those that the run began with.

A checkpoint with a LoRA adapter holds the adapter alone, and the reference of a KL is held by none:
both are read from the model's folder again, where other weights may lie since.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from research_rl.agents.policy import PolicyConfig
from research_rl.trainers.settings import weight_files

log = logging.getLogger(__name__)
BASE_KEY = "base_model"
"""In a checkpoint: name, size and a digest of each file of weights that it does not hold itself."""
Files = list[list[Any]]
_PIECES, _PIECE = 64, 65_536
"""Places of a file that are read, evenly over it, and bytes of each."""


def base_files(config: PolicyConfig) -> Files | None:
    """Return what identifies the weights of a model, None where it is no folder of this machine.

    Of a large file 4 MB are read, in pieces all over it: a training moves nearly every weight, and
    64 GB would keep each start waiting for minutes.
    """
    try:
        return [_stamp(file) for file in weight_files(Path(config.model))] or None
    except OSError as error:
        log.warning("the weights in %s cannot be compared with others: %s", config.model, error)
        return None


def _stamp(file: Path) -> list[Any]:
    """Name, size and SHA-256 of pieces of a file, of a small one of all of it."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as weights:
        if size <= _PIECES * _PIECE:
            digest.update(weights.read())
        else:
            for number in range(_PIECES):
                weights.seek(number * (size - _PIECE) // (_PIECES - 1))
                digest.update(weights.read(_PIECE))
    return [file.name, size, digest.hexdigest()]


def check_base(
    checkpoint: Mapping[str, Any], config: PolicyConfig, now: Files | None, refers: bool = False
) -> None:
    """Refuse an adapter on another base than its own; warn of another reference.

    Args:
        checkpoint: one without a word of its base, of an older version, is taken as it is.
        config: of the policy.
        now: the ``base_files`` of it.
        refers: whether a reference is made of them.

    Raises:
        ValueError: the checkpoint has an adapter that learned on other weights.
    """
    before = checkpoint.get(BASE_KEY)
    if before is None or now is None or [list(one) for one in before] == now:
        return
    if config.lora is not None:
        raise ValueError(
            "model.policy.model must be the weights that the checkpoint's LoRA adapter learned on, "
            f"got others in {config.model}: the files there have changed, or it is another folder; "
            "put the former weights back, or name the folder that holds them"
        )
    if refers:
        log.warning(
            "the weights in %s are others than those that the run began with: the KL is measured "
            "from them from now on; to keep the former reference put the former weights back",
            config.model,
        )


class BaseModel:
    """Writes into checkpoints which weights they build on, and compares them with those of now.

    That is done only where weights are read from the model's folder that no checkpoint holds.

    Args:
        config: of the policy.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config
        self._looked = False
        self._files: Files | None = None

    def look(self, trainer: pl.Trainer, refers: bool) -> None:
        """Look at the files, once and on the first rank; every rank must call it.

        Args:
            trainer: whose ranks are told.
            refers: whether a reference is made of them.
        """
        if self._looked or not (refers or self._config.lora is not None):
            return
        found = base_files(self._config) if trainer.is_global_zero else None
        self._files, self._looked = trainer.strategy.broadcast(found), True

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Note in a checkpoint what was looked at."""
        if self._files is not None:
            checkpoint[BASE_KEY] = self._files

    def check(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any], refers: bool) -> None:
        """Look at the files, and compare them with those of a checkpoint as ``check_base`` does."""
        self.look(trainer, refers)
        check_base(checkpoint, self._config, self._files, refers and trainer.is_global_zero)

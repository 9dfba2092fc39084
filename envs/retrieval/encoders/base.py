"""The interface of an encoder, and the arrays it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Encoder(ABC):
    """Queries and passages as vectors: the better the match, the larger the inner product."""

    name: str
    zero_finds_nothing = False
    """Whether an inner product of 0 means that a passage has nothing of the query."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of the vectors."""

    def fit(self, passages: Iterable[str]) -> None:  # noqa: B027
        """Learn from a corpus what the encoder needs, such as word counts; most need nothing."""

    @abstractmethod
    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return float32 (len(texts), dim)."""

    @abstractmethod
    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        """Return float32 (len(texts), dim)."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this encoder again, as JSON types."""

    def fingerprint(self) -> str | None:
        """Return a digest of weights that the name does not tell apart, None if it does."""
        return None

    def manifest(self) -> dict[str, Any]:
        """Return what an index says of its encoder: name, settings and perhaps its weights."""
        known: dict[str, Any] = {"name": self.name, "settings": self.settings()}
        weights = self.fingerprint()
        return known if weights is None else known | {"weights": weights}

    def save(self, folder: Path) -> None:  # noqa: B027
        """Write what ``fit`` learned into an existing folder."""

    def load(self, folder: Path) -> None:  # noqa: B027
        """Read what ``save`` wrote."""

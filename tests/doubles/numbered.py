"""An encoder whose vectors follow from the number a text holds, and a corpus of such texts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.encoders.base import Encoder, Vectors

COUNT, DIM = 6000, 32


class Numbered(Encoder):
    """A random unit vector for each number, and counts what it is asked.

    Args:
        pause: seconds to sleep before every block but the first.
    """

    name = "numbered"

    def __init__(self, pause: float = 0.0) -> None:
        self.pause, self.encoded = pause, 0
        table = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
        self._table = table / np.linalg.norm(table, axis=1, keepdims=True)

    @property
    def dim(self) -> int:
        return DIM

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        numbers = [int(found[0]) if (found := re.findall(r"\d+", t)) else 0 for t in texts]
        return self._table[numbers]

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        if self.encoded:
            time.sleep(self.pause)
        self.encoded += len(texts)
        return self.encode_queries(texts)

    def settings(self) -> dict[str, Any]:
        return {}


def write_corpus(path: Path, count: int = COUNT) -> Path:
    """Write passages "passage 0", "passage 1", ... with those ids."""
    rows = (json.dumps({"id": str(i), "contents": f"{i} is the number"}) for i in range(count))
    path.write_text("\n".join(rows) + "\n")
    return path

"""Encoders by name: ``make_encoder("intfloat/e5-base-v2")``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from research_rl.envs.retrieval.encoders.base import Encoder
from research_rl.envs.retrieval.encoders.sketch import SKETCH, BM25SketchEncoder


def make_encoder(name: str, **options: Any) -> Encoder:
    """Return the encoder of that name: ``bm25-sketch``, or a Hugging Face model name or path.

    A path is made absolute: read in another folder, it might name a model of the Hub.

    Raises:
        ValueError: an option that this encoder does not have.
    """
    from research_rl.envs.retrieval.encoders.huggingface import HFEncoder

    if Path(name).is_dir():
        name = os.path.abspath(name)  # resolving links could lose the name of the model's family
    try:
        return BM25SketchEncoder(**options) if name == SKETCH else HFEncoder(name, **options)
    except TypeError as error:
        raise ValueError(f"encoder {name!r} does not take these options: {error}") from error

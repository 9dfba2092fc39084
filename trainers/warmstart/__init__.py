"""The warm start of a tiny model, in place of pretraining.

Read first: callback.py
May import: agents, envs, trainers.algorithms, trainers.checkpoint, trainers.learner,
    trainers.settings
"""

from __future__ import annotations

from research_rl.trainers.warmstart.callback import WarmStart
from research_rl.trainers.warmstart.demonstrations import TAGS, WORDS
from research_rl.trainers.warmstart.tiny_model import (
    TinyModelConfig,
    tiny_model,
    tiny_shape,
    word_tokenizer,
)

__all__ = [
    "TAGS",
    "WORDS",
    "TinyModelConfig",
    "WarmStart",
    "tiny_model",
    "tiny_shape",
    "word_tokenizer",
]

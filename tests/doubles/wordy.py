"""The quickstart's world, small, and its model before the warm start: a token for each word."""

from __future__ import annotations

from research_rl.agents.policy.policy import LMPolicy
from research_rl.envs.synthetic.world import WORLD_SPLITS, SyntheticWorld
from research_rl.trainers.warmstart import (
    TAGS,
    WORDS,
    TinyModelConfig,
    tiny_model,
    word_tokenizer,
)

WORLD = SyntheticWorld(num_people=60)


def asked() -> list[str]:
    """Questions of every split and number of hops."""
    sets = (WORLD.sample(split, {1: 1, 2: 1, 3: 1}, 60) for split in WORLD_SPLITS)
    return [question.text for questions in sets for question in questions]


def policy(max_length: int = 512) -> LMPolicy:
    """The model, with random weights."""
    tokenizer = word_tokenizer([*TAGS, *WORDS, *WORLD.vocabulary])
    shape = TinyModelConfig(hidden_size=32, max_length=max_length)
    return LMPolicy(tiny_model(tokenizer, shape, seed=0), tokenizer)

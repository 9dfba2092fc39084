"""Many devices: sums over ranks, and sharded weights.

Read first: ranks.py
May import: agents, envs, trainers.checkpoint, trainers.lightning_internals
"""

from __future__ import annotations

from research_rl.trainers.distributed.ranks import (
    average_gradients,
    clip_gradients,
    gather,
    is_sharded,
    mean_over_ranks,
    means_over_ranks,
    most,
    without_sync,
)
from research_rl.trainers.distributed.sharding import ShardedStrategy, Shards

__all__ = [
    "ShardedStrategy",
    "Shards",
    "average_gradients",
    "clip_gradients",
    "gather",
    "is_sharded",
    "mean_over_ranks",
    "means_over_ranks",
    "most",
    "without_sync",
]

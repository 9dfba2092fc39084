"""What a run keeps: checkpoints, metrics, its folder, exported weights.

`research fit --ckpt_path last` goes on from what is kept here, as if the run had not been stopped.

Read first: callback.py
May import: agents, envs, trainers.lightning_internals, trainers.settings
"""

from __future__ import annotations

from research_rl.trainers.checkpoint.base_model import BaseModel, base_files
from research_rl.trainers.checkpoint.callback import RunCheckpoint
from research_rl.trainers.checkpoint.exam import differences, reward_of
from research_rl.trainers.checkpoint.export import (
    ExportError,
    disk_errors_named,
    export_checkpoint,
    iteration_of,
    learned_nothing,
    load_weights,
    policy_config,
    readable,
    save_policy,
)
from research_rl.trainers.checkpoint.files import (
    AtomicCheckpointIO,
    CheckpointError,
    disk_error,
    find_checkpoint,
    remove_checkpoint,
    why_torn,
)
from research_rl.trainers.checkpoint.metrics_file import KeepMetrics, MetricsError, RunLogger
from research_rl.trainers.checkpoint.resumed import ResumedOptimizer
from research_rl.trainers.checkpoint.run_folder import changes, run_in, with_references
from research_rl.trainers.checkpoint.shards import UnsafeCheckpointError, check_shards
from research_rl.trainers.checkpoint.stopping import sigterm_noted
from research_rl.trainers.checkpoint.trained import take_over

__all__ = [
    "AtomicCheckpointIO",
    "BaseModel",
    "CheckpointError",
    "ExportError",
    "KeepMetrics",
    "MetricsError",
    "ResumedOptimizer",
    "RunCheckpoint",
    "RunLogger",
    "UnsafeCheckpointError",
    "base_files",
    "changes",
    "check_shards",
    "differences",
    "disk_error",
    "disk_errors_named",
    "export_checkpoint",
    "find_checkpoint",
    "iteration_of",
    "learned_nothing",
    "load_weights",
    "policy_config",
    "readable",
    "remove_checkpoint",
    "reward_of",
    "run_in",
    "save_policy",
    "sigterm_noted",
    "take_over",
    "why_torn",
    "with_references",
]

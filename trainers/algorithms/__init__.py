"""Learning rules. An Algorithm is a small module; a YAML names it by its class path."""

from research_rl.trainers.algorithms.base import Algorithm
from research_rl.trainers.algorithms.grpo import GRPO

__all__ = ["GRPO", "Algorithm"]

"""Class paths of older configs: modules that moved can still be imported by their former names.

A config saved by version 0.1.0 may say ``research_rl.trainers.guard.CollapseGuard``. Reading it
imports ``research_rl.trainers.guard``, which is answered from here with a warning that gives the
path to write today. Only modules whose classes a config can name are listed.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "research_rl.agents.cached": "research_rl.agents.engines",
    "research_rl.agents.engine": "research_rl.agents.engines",
    "research_rl.agents.generate": "research_rl.agents.methods",
    "research_rl.agents.ircot": "research_rl.agents.methods",
    "research_rl.agents.iter_retgen": "research_rl.agents.methods",
    "research_rl.agents.naive": "research_rl.agents.methods",
    "research_rl.agents.openai_api": "research_rl.agents.methods",
    "research_rl.agents.research": "research_rl.agents.methods",
    "research_rl.agents.served": "research_rl.agents.methods",
    "research_rl.agents.server": "research_rl.agents.web",
    "research_rl.agents.streaming": "research_rl.agents.engines",
    "research_rl.envs.retrieval.bm25": "research_rl.envs.retrieval",
    "research_rl.envs.retrieval.dense": "research_rl.envs.retrieval",
    "research_rl.envs.retrieval.gpu": "research_rl.envs.retrieval",
    "research_rl.envs.retrieval.hf_encoder": "research_rl.envs.retrieval",
    "research_rl.envs.retrieval.remote": "research_rl.envs.retrieval",
    "research_rl.envs.retrieval.torch_search": "research_rl.envs.retrieval",
    "research_rl.trainers.checkpoint_files": "research_rl.trainers.checkpoint",
    "research_rl.trainers.counterfactual": "research_rl.trainers.credit",
    "research_rl.trainers.guard": "research_rl.trainers.health",
    "research_rl.trainers.metrics_file": "research_rl.trainers.checkpoint",
    "research_rl.trainers.sharding": "research_rl.trainers.distributed",
    "research_rl.trainers.stopping": "research_rl.trainers.checkpoint",
}
"""Former module: the door behind which its classes are."""


class _Forward(Loader):
    """Makes a module that takes each name from the door of the room it moved to."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        old, door = spec.name, MOVED[spec.name]
        module = ModuleType(old)

        def ask(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            found = getattr(import_module(door), name)
            warnings.warn(f"{old}.{name} moved: write {door}.{name}", FutureWarning, stacklevel=2)
            return found

        module.__dict__["__getattr__"] = ask
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the module only forwards."""


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Forward()) if fullname in MOVED else None


def answer_for_moved_modules() -> None:
    """Let the former names be imported in this process; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())

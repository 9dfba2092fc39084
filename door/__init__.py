"""Train language models to reason with search.

``research_rl.train("quickstart")`` is the command ``research fit --config quickstart``, and so for
``evaluate`` and ``ask``. The parts are in ``research_rl.envs`` (text environments),
``research_rl.agents`` (the policy) and ``research_rl.trainers`` (learning).

This file is the package ``research_rl`` itself; the folders beside it install as what is in it.
Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research_rl.trainers.api import Evaluated, Trained, ask, evaluate, train

    __version__: str

__all__ = ["Evaluated", "Trained", "__version__", "ask", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("research-rl")
    if name in __all__:
        return getattr(import_module("research_rl.trainers.api"), name)
    raise AttributeError(f"module 'research_rl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

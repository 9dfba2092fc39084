"""Doors that open late: names of a room that are imported when somebody first uses them.

``import research_rl.agents`` must not wait for torch, and ``research plan --help`` not for
Lightning. So the door of such a room lists where its names stand instead of importing them::

    __getattr__ = lazy(__name__, {"engines": ["CachedEngine"], "policy": ["LMPolicy", "Reference"]})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(door: str, places: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a door (PEP 562).

    Args:
        door: ``__name__`` of the door.
        places: each module below the door, and the names that are taken from it.
    """

    place_of = {name: place for place, names in places.items() for name in names}

    def attribute(name: str) -> Any:
        if name not in place_of:
            raise AttributeError(f"module {door!r} has no attribute {name!r}")
        return getattr(import_module(f"{door}.{place_of[name]}"), name)

    return attribute

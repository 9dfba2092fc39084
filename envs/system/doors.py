"""Lazy exports of a package: names that are imported when they are first used.

``import research_rl.agents`` must not wait for torch, and ``research plan --help`` not for
Lightning. So the ``__init__.py`` of such a package lists where its names are defined::

    __getattr__ = lazy(__name__, {"engines": ["CachedEngine"], "policy": ["LMPolicy", "Reference"]})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(door: str, places: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package (PEP 562).

    Args:
        door: ``__name__`` of the package.
        places: each module of it, and the names that are taken from that.
    """

    place_of = {name: place for place, names in places.items() for name in names}

    def attribute(name: str) -> Any:
        if name not in place_of:
            raise AttributeError(f"module {door!r} has no attribute {name!r}")
        return getattr(import_module(f"{door}.{place_of[name]}"), name)

    return attribute

"""The error of an adapter whose outside library is not installed."""

from __future__ import annotations


def missing_library(library: str, install: str) -> ModuleNotFoundError:
    """Return the error for an adapter without its library.

    Args:
        library: what could not be imported.
        install: the command that installs it.
    """
    return ModuleNotFoundError(
        f"this adapter needs {library}, which is not installed; run: {install}", name=library
    )

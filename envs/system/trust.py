"""The one grant: ``--trust`` on the command line lets what came with a folder run code.

A model, an encoder or a reranker may bring code of its own. Without ``--trust`` it is refused,
also where transformers would ask at the terminal; see docs/trust.md.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRUST = "RESEARCH_TRUST"
"""The environment variable with which ``--trust`` reaches the processes of other ranks."""


class TrustError(ValueError):
    """A folder asks for what only ``--trust`` on the command line grants."""


def trusted() -> bool:
    """Whether the command line says ``--trust``."""
    return bool(os.environ.get(TRUST))


def grant(what: str, where: Path | str) -> str:
    """Return a message that says what a folder asks for, and how to give it."""
    return (
        f"{where} {what}, and it came with a folder that may be somebody else's; add --trust to "
        "the command if you trust everything in that folder"
    )


@contextmanager
def code_of(model: str, allowed: bool = False) -> Iterator[bool]:
    """Within, a model of transformers is loaded; yields the ``trust_remote_code`` to load it with.

    Args:
        model: a folder, or a name on the Hub.
        allowed: the user has granted it in another way than by ``--trust``.

    Raises:
        TrustError: the model brings code, and nobody has granted that it is run; or its weights
            are no plain tensors.
    """
    try:
        yield allowed or trusted()
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise TrustError(grant("asks to run code that comes with the model", model)) from error
    except pickle.UnpicklingError as error:
        raise TrustError(not_plain(model, error)) from error


def not_plain(where: Path | str, error: Exception) -> str:
    """Return a message about a file that ``torch.load`` would not read, for it is no plain data."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    named = next((line for line in lines if "GLOBAL" in line), lines[-1])
    return (
        f"{where} must hold tensors, numbers and text alone, but {named.strip()}; nothing of it "
        "was run, and no option grants it, --trust neither: have its author export it as "
        "safetensors"
    )

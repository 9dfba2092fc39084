"""Notices of what was decided for the user while a model was loaded, each once a process.

A policy and its reference are made from the same folder; one line in the log is enough.
"""

from __future__ import annotations

import functools
import logging

log = logging.getLogger(__name__)


@functools.cache
def notice(message: str) -> None:
    """Log a warning, unless these very words were logged before."""
    log.warning(message)

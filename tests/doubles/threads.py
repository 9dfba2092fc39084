"""The threads that a test begins, by the names that their owners gave them."""

from __future__ import annotations

import threading


class Threads:
    """Threads that were not there when this was made; those of other tests do not count."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def running(self, *prefixes: str) -> int:
        """How many there are whose names begin so."""
        new = set(threading.enumerate()) - self._before
        return sum(thread.name.startswith(prefixes) for thread in new)

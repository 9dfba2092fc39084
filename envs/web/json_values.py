"""How many values a JSON body holds, counted while it arrives and before it is parsed."""

from __future__ import annotations


class ValueCount:
    """Counts commas and opening brackets outside of texts: never fewer than there are values.

    It reads UTF-8, in which the byte of a quotation mark is never part of another character.
    """

    def __init__(self) -> None:
        self.values = 0
        self._in_text = False
        self._rest = b""

    def add(self, part: bytes) -> int:
        """Return how many there are with one more part of the body."""
        part = self._rest + part
        odd = (len(part) - len(part.rstrip(b"\\"))) % 2
        self._rest = part[len(part) - odd :]  # what it escapes comes with the next part
        whole = part[: len(part) - odd].replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = whole.split(b'"')
        outside = b"".join(pieces[self._in_text :: 2])
        self.values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        self._in_text ^= len(pieces) % 2 == 0
        return self.values

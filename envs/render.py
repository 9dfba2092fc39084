"""An episode as readable text for a terminal: each kind of text in its own colour."""

from __future__ import annotations

import re
from collections.abc import Sequence

from research_rl.envs.protocols import Segment, parts

_RESET = "\x1b[0m"
_COLOURS = {
    "prompt": "\x1b[2m",  # dim
    "think": "\x1b[36m",  # cyan
    "search": "\x1b[1;33m",  # bold yellow
    "result": "\x1b[34m",  # blue
    "answer": "\x1b[1;32m",  # bold green
}
_UNPRINTABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render_ansi(prompt: str, segments: Sequence[Segment]) -> str:
    """Return prompt and response in colour.

    Control characters and lone surrogates become U+FFFD, so that printing can neither fail nor
    command the terminal.
    """
    shown = [_paint("prompt", prompt), "\n"]
    for segment in segments:
        if segment.kind == "env":
            shown += [_paint("result", segment.text), "\n"]
        else:
            shown += [_paint(part.kind, part.written) for part in parts(segment.text)]
    return "".join(shown)


def _paint(kind: str, text: str) -> str:
    code = _COLOURS.get(kind)
    return f"{code}{_printable(text)}{_RESET}" if code else _printable(text)


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)

"""An episode as readable text for a terminal: each kind of text in its own colour."""

from __future__ import annotations

import re
from collections.abc import Sequence

from research_rl.envs.protocols import Segment

_RESET = "\x1b[0m"
_COLOURS = {
    "prompt": "\x1b[2m",  # dim
    "think": "\x1b[36m",  # cyan
    "search": "\x1b[1;33m",  # bold yellow
    "result": "\x1b[34m",  # blue
    "answer": "\x1b[1;32m",  # bold green
}
_BLOCK = re.compile(r"<(think|search|answer)>.*?(?:</\1>|\Z)", re.DOTALL)
_UNPRINTABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render_ansi(prompt: str, segments: Sequence[Segment]) -> str:
    """Return prompt and response in colour.

    Control characters and lone surrogates become U+FFFD, so that printing can neither fail nor
    command the terminal.
    """
    parts = [_paint("prompt", prompt), "\n"]
    for segment in segments:
        if segment.kind == "env":
            parts += [_paint("result", segment.text), "\n"]
        else:
            parts.append(_paint_turn(segment.text))
    return "".join(parts)


def _paint_turn(turn: str) -> str:
    parts, begin = [], 0
    for block in _BLOCK.finditer(turn):
        parts += [_printable(turn[begin : block.start()]), _paint(block[1], block[0])]
        begin = block.end()
    return "".join([*parts, _printable(turn[begin:])])


def _paint(kind: str, text: str) -> str:
    return f"{_COLOURS[kind]}{_printable(text)}{_RESET}"


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)

"""Text for a terminal: one palette for all that is shown, and no control characters from outside.

A query is bold yellow wherever it is shown, in ``env.render()``, ``research ask`` and the viewer::

    print(paint("search", "<search> boss of Bakset </search>", shows_colour(sys.stdout)))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TextIO, TypeAlias

from research_rl.envs.protocols import RESEARCH, Kind, Protocol, Segment
from research_rl.envs.system import printable

TextStyle: TypeAlias = Kind | Literal["prompt", "heading", "note", "error"]
"""What is painted: a part of an episode, or something said about it."""
_COLOURS: dict[TextStyle, str] = {
    "think": "36",  # cyan
    "search": "1;33",  # bold yellow
    "result": "34",  # blue
    "answer": "1;32",  # bold green
    "refine": "36",
    "text": "",
    "prompt": "2",  # dim
    "heading": "1",  # bold
    "note": "2",
    "error": "1;31",  # bold red
}


def shows_colour(out: TextIO) -> bool:
    """Say whether to write colour to ``out``: to a terminal, unless the user or it cannot have it.

    See https://no-color.org ; ``TERM=dumb`` is a terminal without colours.
    """
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(style: TextStyle, text: str, colour: bool = True) -> str:
    """Return ``text`` printable, and in its style's colour where ``colour`` says so."""
    code = _COLOURS[style] if colour else ""
    return f"\x1b[{code}m{printable(text)}\x1b[0m" if code else printable(text)


def render_ansi(
    prompt: str, segments: Sequence[Segment], protocol: Protocol = RESEARCH, opened: str = ""
) -> str:
    """Return prompt and response as printable text, each kind of text in its colour.

    Args:
        prompt: in front of the response.
        segments: of the response.
        protocol: in which it is written.
        opened: what the first segment begins with, which is not shown with the prompt as well.
    """
    shown = [paint("prompt", prompt.removesuffix(opened) if segments else prompt), "\n"]
    for segment in segments:
        if segment.kind == "env":
            shown += [paint("result", segment.text), "\n"]
        else:
            shown += [paint(part.kind, part.written) for part in protocol.parts(segment.text)]
    return "".join(shown)

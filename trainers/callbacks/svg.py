"""Pictures of matplotlib as SVG that fits light and dark pages, and as PNG.

A page shows the SVG as an image: its colours are variables that follow ``prefers-color-scheme``,
its background is transparent, and as an image no script in it could run.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from research_rl.envs.system import write_whole

INK, SOFT, GRID, FAINT = "#33383d", "#6b737b", "#e3e5e7", "#b0b6bc"
# Okabe and Ito's colours, told apart by colour-blind readers too: https://jfly.uni-koeln.de/color/
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DARK = {
    **{INK: "#e4e7ea", SOFT: "#a2abb5", GRID: "#343b42", FAINT: "#77818c"},
    **{"#0072b2": "#4ea6e6", "#d55e00": "#f08a4b", "#009e73": "#35c295"},
    **{"#aab4be": "#8a939c", "#8fb3d9": "#93bde9", "#5b8fc7": "#6a9fdb", "#2f6bb0": "#4a80c4"},
    **{"#1b4a85": "#3a69a8", "#c0392b": "#ee7264", "#7d8a97": "#97a3af"},
    **{"#8470a8": "#a893cf", "#8e3b2f": "#c8705f"},
}
"""What a colour becomes on a dark page; the others stay."""
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "research"}
_PIXELS_AN_INCH, _STRETCH = 96, 1.3
"""Of CSS; and how much larger than drawn a picture may be, so that its words stay words."""
_FONTS = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
_FAMILY = re.compile(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*")


def svg_of(figure: Figure) -> str:
    """Return a figure as SVG with a transparent background; equal figures give equal text."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = _FAMILY.sub(rf"\g<1>{_FONTS}", file.getvalue())
    text = text[text.index("<svg") :]  # no document type: a page needs none
    for light in DARK:
        text = re.sub(rf"((?:fill|stroke): ?){light}\b", rf"\1var(--c{light[1:]})", text)
    head = text.index(">") + 1
    return text[:head] + f"<style>{_variables()}</style>" + text[head:]


def _variables() -> str:
    light = ";".join(f"--c{colour[1:]}:{colour}" for colour in DARK)
    dark = ";".join(f"--c{colour[1:]}:{other}" for colour, other in DARK.items())
    return f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"


def _address(svg: str) -> str:
    """The ``data:`` address of a picture, for the ``src`` of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


class Picture(NamedTuple):
    """A picture for wide screens and for phones, as addresses that hold it.

    Args:
        alt: what it shows.
        wide: for wide screens.
        narrow: for phones.
        most: CSS pixels to which a wide screen may stretch it.
    """

    alt: str
    wide: str
    narrow: str
    most: int


def picture_of(alt: str, wide: Figure, narrow: Figure) -> Picture:
    """Return a picture of two figures, for wide screens and for phones."""
    most = round(_STRETCH * _PIXELS_AN_INCH * wide.get_figwidth())
    return Picture(alt, _address(svg_of(wide)), _address(svg_of(narrow)), most)


def save_picture(figure: Figure, target: Path) -> Path:
    """Write a figure whole or not at all: SVG where the name ends in .svg, else PNG."""
    if target.suffix == ".svg":
        return write_whole(target, svg_of(figure))
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return write_whole(target, [png.getvalue()])


def drawable(name: str, longest: int = 40) -> str:
    """Return a name as matplotlib can draw it: no formula, no line ends, not too long."""
    plain = "".join(c if c.isprintable() else " " for c in name)
    plain = plain.encode("utf-8", "replace").decode("utf-8")
    return (plain if len(plain) <= longest else f"{plain[: longest - 1]}…").replace("$", r"\$")

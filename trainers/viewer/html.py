"""HTML pages that load nothing else: ``html_page("index.html", title="Rollouts", rows=rows)``.

Every page extends ``base.html``, whose Content-Security-Policy lets the browser load nothing: style
sheets and scripts are written into the page, so that it works from disk.
"""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_ROOM = "research_rl.trainers.viewer"


def html_page(template: str, room: str = _ROOM, **values: Any) -> str:
    """Return a filled template; what UTF-8 cannot say in it becomes a question mark.

    Args:
        template: a file of the room's folder ``templates``.
        room: the package that brings the template; it may extend and show those of this room.
        values: what the template names. Text is escaped; ``tojson`` writes what a script reads.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    page = _environment(room).get_template(template).render(values)
    return page.encode("utf-8", "replace").decode("utf-8")


def packed(value: Any) -> str:
    """Return deflated JSON in base64, which ``unpack`` of base.js reads; none of it is markup."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: a lone surrogate stays an escape
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")


@cache
def _environment(room: str) -> Environment:
    loader = ChoiceLoader([PackageLoader(package) for package in (room, _ROOM)])
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}

    def asset(name: str) -> Markup:
        """A style sheet or script as it stands: braces mean nothing in it."""
        return Markup(loader.get_source(made, name)[0])

    made.globals["asset"] = asset
    return made

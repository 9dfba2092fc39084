"""The page of ``research ask --web``: one file, which loads nothing and asks its own server."""

from __future__ import annotations

import base64
import hashlib
import re

from research_rl.trainers.viewer import html_page

_INLINE = {kind: re.compile(rf"<{kind}>(.*?)</{kind}>", re.DOTALL) for kind in ("style", "script")}


def agent_page(wants_key: bool = False) -> str:
    """Return the page.

    Args:
        wants_key: whether the server wants a key, for which the page then asks.
    """
    return html_page("ask.html", room="research_rl.trainers.agent", title="Ask", key=wants_key)


def page_policy(page: str) -> str:
    """Return the Content-Security-Policy of a page: its own style and script run, nothing else.

    A passage that came to stand in the page as markup could neither run nor load anything.
    """
    rules = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'"]
    for kind, inline in _INLINE.items():
        digests = [hashlib.sha256(text.encode()).digest() for text in inline.findall(page)]
        sources = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        rules.append(f"{kind}-src {' '.join(sources)}")
    return "; ".join([*rules, "form-action 'none'", "frame-ancestors 'none'"])

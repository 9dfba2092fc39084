"""Pages as a browser and a reader take them: their tags, what would load or run, their text."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Tags(HTMLParser):
    """Collects tags, and attributes that could load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.odd: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            loads = name in ("src", "srcset", "href") and not (value or "").startswith("data:")
            if name.startswith("on") or (loads and "//" in (value or "")):
                self.odd.append(f"{tag} {name}={value}")


def text_of(page: str) -> str:
    """What stands on a page, without markup, style and scripts."""
    body = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    body = body.replace("<wbr>", "")  # a place to break a long word is no gap
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())

"""README.md for an index page: links, pictures and the clone line with the repository's address.

On GitHub and in a checkout its links are relative; a page such as PyPI's cannot follow them. ::

    python docs/readme.py https://github.com/OWNER/NAME v0.2.0     # writes README.md anew

The workflow ``release`` runs this in front of the build; nobody commits what it writes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def absolute(text: str, repository: str, revision: str) -> str:
    """Return the text with every relative link leading to a revision of the repository.

    Raises:
        ValueError: the address is not one of https.
    """
    if not repository.startswith("https://"):
        raise ValueError(f"the repository's address must begin with https://, got {repository!r}")
    repository = repository.rstrip("/")

    def moved(found: re.Match[str]) -> str:
        mark, title, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        return f"{mark}[{title}]({repository}/{'raw' if mark else 'blob'}/{revision}/{target})"

    text = re.sub(r"git clone REPOSITORY (.*?)   #.*", rf"git clone {repository} \1", text)
    return _LINK.sub(moved, text)


if __name__ == "__main__":
    README.write_text(
        absolute(README.read_text(encoding="utf-8"), *sys.argv[1:3]), encoding="utf-8"
    )

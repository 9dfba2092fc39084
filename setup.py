"""What setup.cfg cannot say: links that work on a package index, made when a package is built.

The address of the repository is in RESEARCH_RL_URL, or in what GitHub sets in a workflow. Without
one the README keeps its relative links, and the package names no addresses.
"""

from __future__ import annotations

import os
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
RELATIVE = re.compile(r"(!?)\[((?:[^\[\]]|\n)*)\]\((?!https?://|mailto:|#)([^)\s]+)\)")
PAGES = {
    "Documentation": "tree/main/docs",
    "Changelog": "blob/main/CHANGELOG.md",
    "Issues": "issues",
}


def absolute(text: str, url: str, version: str) -> str:
    """Return a page of the repository's root with every relative link and picture made absolute."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({url}/{kind}/v{version}/{found[3]})"

    return RELATIVE.sub(link, text)


def address() -> str:
    """Return the repository's address, "" where nobody says it."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    given = os.environ.get("RESEARCH_RL_URL") or (f"{server}/{name}" if server and name else "")
    return given.rstrip("/")


def main() -> None:
    """Build, with addresses where one is known."""
    url = address()
    if not url:
        setup()
        return
    declared = ConfigParser()
    declared.read(HERE / "setup.cfg", encoding="utf-8")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    setup(
        url=url,
        project_urls={"Source": url, **{name: f"{url}/{page}" for name, page in PAGES.items()}},
        long_description=absolute(readme, url, declared["metadata"]["version"]),
        long_description_content_type="text/markdown",
    )


if __name__ == "__main__":
    main()

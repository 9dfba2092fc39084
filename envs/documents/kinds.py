"""Kinds of files, and the walk over a folder: what is read, and what is passed over and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_CODE = (
    *(".py", ".pyi", ".js", ".jsx", ".ts", ".tsx", ".java", ".kt", ".scala", ".c", ".h", ".cc"),
    *(".cpp", ".hpp", ".cs", ".go", ".rs", ".rb", ".php", ".swift", ".lua", ".pl", ".r", ".jl"),
    *(".sh", ".sql"),
)
KINDS: Mapping[str, str] = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), "md"),
    **dict.fromkeys((".txt", ".text", ".log"), "txt"),
    ".rst": "rst",
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    ".docx": "docx",
    **dict.fromkeys(_CODE, "code"),
}
"""What a file is, by the end of its name in small letters."""
PACKAGES: Mapping[str, str] = {"html": "beautifulsoup4", "pdf": "pypdf", "docx": "python-docx"}
"""What a kind is read with; the others need nothing."""
MODULES: Mapping[str, str] = {"html": "bs4", "pdf": "pypdf", "docx": "docx"}
"""The same, as Python imports it."""
_NAMED = frozenset({"readme", "license", "licence", "copying", "changelog", "authors", "notice"})
_CACHES = frozenset({"__pycache__", "node_modules"})


@dataclass
class FoundFiles:
    """The files of a folder.

    Args:
        files: (path within the folder with ``/`` between its parts, kind), in the order of paths.
        passed: how many were passed over, by reason.
        closed: (path, reason) of the folders that cannot be listed.
    """

    files: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    closed: list[tuple[str, str]] = field(default_factory=list)


def kind_of(path: str) -> str | None:
    """Return what kind of document a file is by its name, None for no known one.

    >>> kind_of("docs/Guide.MD"), kind_of("README"), kind_of("photo.jpg")
    ('md', 'txt', None)
    """
    name = path.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    if not suffix:
        return "txt" if stem.lower() in _NAMED else None
    return KINDS.get(suffix.lower())


def find_files(folder: Path, skip: frozenset[str] = frozenset()) -> FoundFiles:
    """Return the documents below a folder.

    Passed over and counted are hidden files and folders, caches of tools, links, folders that may
    not be listed, and names that end in no known way. A hidden folder counts as one.

    Args:
        folder: to look into.
        skip: kinds to leave out.

    Raises:
        OSError: ``folder`` itself cannot be listed.
    """
    found = FoundFiles()

    def closed(error: OSError) -> None:
        if error.filename is None or Path(error.filename) == folder:
            raise error
        inside = os.path.relpath(error.filename, folder).replace(os.sep, "/")
        found.closed.append((inside, error.strerror or type(error).__name__))

    for here, folders, names in os.walk(folder, onerror=closed):
        inner = []
        for name in sorted(folders):
            if name.startswith(".") or name in _CACHES:
                found.passed["hidden folders and caches"] += 1
            elif os.path.islink(os.path.join(here, name)):
                found.passed["links"] += 1
            else:
                inner.append(name)
        folders[:] = inner
        for name in names:
            path = os.path.join(here, name)
            inside = os.path.relpath(path, folder).replace(os.sep, "/")
            kind = kind_of(inside)
            if name.startswith("."):
                found.passed["hidden files"] += 1
            elif os.path.islink(path):
                found.passed["links"] += 1
            elif not os.path.isfile(path):
                found.passed["neither file nor folder"] += 1
            elif kind is None:
                suffix = os.path.splitext(name)[1].lower()
                found.passed[f"{suffix or 'no'} ending, not read"] += 1
            elif kind in skip:
                found.passed[f"{kind}, as --skip says"] += 1
            else:
                found.files.append((inside, kind))
    found.files.sort()
    return found

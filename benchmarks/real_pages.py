"""Real paragraphs as a folder of pages, one a title, with the questions that people asked of them.

HotpotQA, 2WikiMultihopQA and MuSiQue in FlashRAG's layout come as paragraphs with titles. Written
as files of markdown they are a folder like anybody's, and ``research questions make --from file``
checks their questions against the index of it.
"""

from __future__ import annotations

import re
from pathlib import Path

from real_questions import SETS, read_rows, write_rows

LONGEST = 60  # characters of a file's name


def write_real_pages(data: Path, out: Path) -> tuple[Path, Path]:
    """Write each title as a page and all questions as one file, unless they are there.

    Args:
        data: folder of ``SET_corpus.jsonl`` and ``SET_questions.jsonl``.
        out: folder of the pages and the questions.

    Returns:
        The folder of the pages, by first letters, and the file of the questions.
    """
    pages, given = out / "pages", out / "given.jsonl"
    if given.is_file():
        return pages, given
    texts: dict[str, dict[str, None]] = {}
    for name in SETS:
        for row in read_rows(data / f"{name}_corpus.jsonl"):
            title, _, body = row["contents"].partition("\n")
            texts.setdefault(title.strip('"'), {})[body.strip()] = None
    names: set[str] = set()
    for title, bodies in sorted(texts.items()):
        name = _file_name(title, names)
        names.add(name)
        page = pages / name[0] / f"{name}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"# {title}\n\n" + "\n\n".join(bodies) + "\n", encoding="utf-8")
    asked = (
        {**row, "id": f"{name}-{row['id']}"}
        for name in SETS
        for row in read_rows(data / f"{name}_questions.jsonl")
    )
    write_rows(given, asked)
    return pages, given


def _file_name(title: str, taken: set[str]) -> str:
    """Return a name that no page has."""
    plain = re.sub(r"[^\w]+", "-", title).strip("-").casefold()[:LONGEST] or "page"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name

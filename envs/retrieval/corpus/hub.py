"""Corpora as people have them, written once as JSONL: files of other layouts, data sets of the Hub.

``local_corpus("psgs_w100.tsv", "indexes/wiki")`` is ``indexes/wiki.corpus.jsonl``, and so is
``local_corpus("owner/wiki:en", "indexes/wiki")``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research_rl.envs.questions import (
    QuestionError,
    container_of,
    hub_rows,
    is_compressed,
    is_hub_name,
    is_saved_data_set,
    open_bytes,
    open_rows,
    table_rows,
)
from research_rl.envs.retrieval.corpus.corpus import CorpusError
from research_rl.envs.system import clear_partial, progress_bar, sha256_of, write_whole

_IDS = ("id", "_id", "docid", "pid")
_TEXTS = ("contents", "text")
_UNNAMED = {2: ("id", "text"), 3: ("id", "text", "title")}  # MS MARCO; DPR without its first line
_KNOWN = (
    "must be JSONL, a JSON array, CSV, TSV or parquet (text perhaps as .gz or .zst), a folder of "
    "BEIR (corpus.jsonl) or one that save_to_disk of datasets wrote"
)


def local_corpus(
    corpus: str | Path, out: str | Path, split: str = "train", progress: bool = False
) -> Path:
    """Return the corpus as a JSONL file: itself, or what it holds as ``OUT.corpus.jsonl``.

    What was written before is not written again; ``OUT.corpus.jsonl.from`` says what it is.

    Args:
        corpus: a file, a folder, or owner/name[:config] of a data set on the Hub, with columns
            ``contents``, or ``text`` and perhaps ``title``; rows without an id are numbered.
        out: the index folder beside which the file is written.
        split: which split to read.
        progress: show how many passages are written.

    Raises:
        CorpusError: it is nothing known, there is no such file and the Hub does not give it, or the
            file to write holds something else.
        ImportError: a package is needed that is not installed; says how to install it.
    """
    path = Path(corpus)
    if path.is_dir() and (path / "corpus.jsonl").is_file():  # BEIR
        path = path / "corpus.jsonl"
    if not path.exists() and not is_hub_name(corpus):
        return path
    if path.is_file() and _is_jsonl(path):
        return path
    name = _identity(path) if path.exists() else f"{corpus} {split}"
    target, note = Path(f"{out}.corpus.jsonl"), Path(f"{out}.corpus.jsonl.from")
    if target.exists():
        kept = note.read_text(encoding="utf-8").strip() if note.is_file() else "a file of yours"
        if kept == name:
            return target
        wanted = path if path.exists() else corpus
        reason = f"must hold {wanted}, got {kept}; remove it, or choose another --out"
        raise CorpusError(target, None, reason)
    note.unlink(missing_ok=True)
    try:
        rows = _rows_of(path, corpus, split)
        with progress_bar(rows, desc="converting", unit=" passages", disable=not progress) as bar:
            write_rows(bar, target)
    except QuestionError as error:
        raise CorpusError(error.file, error.line, error.reason) from error
    write_whole(note, f"{name}\n")
    return target


def grown_corpus(corpus: str | Path, index: str | Path, progress: bool = False) -> Path:
    """Return a corpus that an index grows to as a JSONL file; see ``local_corpus``.

    A converted one lies beside that of the index, under a name of its own.
    """
    path = Path(corpus)
    if path.is_file() and _is_jsonl(path):
        return path
    name = _identity(path) if path.exists() else str(corpus)
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return local_corpus(corpus, f"{index}.{mark}", progress=progress)


def _is_jsonl(path: Path) -> bool:
    """Return whether a file can be indexed as it is.

    Raises:
        CorpusError: it is nothing that can be read.
    """
    try:
        container = container_of(path)
    except QuestionError as error:
        raise CorpusError(error.file, error.line, error.reason) from error
    if container is None:
        with path.open("rb") as file:
            start = file.read(40)
        raise CorpusError(path, None, f"{_KNOWN}, got a file that begins with {start!r}")
    return container == "lines" and not is_compressed(path)


def _identity(path: Path) -> str:
    """Return what tells a source from another one of the same name: of files their contents."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return f"{path.name} " + " ".join(sha256_of(file) for file in files)


def _rows_of(path: Path, corpus: str | Path, split: str) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        yield from hub_rows(str(corpus), split, streaming=True)
        return
    if path.is_dir() and not is_saved_data_set(path):
        raise CorpusError(path, None, f"{_KNOWN}, got a folder of something else")
    if path.is_file() and container_of(path) == "table":
        yield from (row for _, row in table_rows(path, _columns(path), lists=False))
        return
    yield from (row for _, row in open_rows(path, split if path.is_dir() else None)[1])


def _columns(path: Path) -> tuple[str, ...] | None:
    """Return the names of the columns of a table without a line of names, None if it has one.

    Raises:
        CorpusError: it has none, and another number of columns than known files without one.
    """
    with open_bytes(path) as file:
        line = file.readline(1 << 20).decode("utf-8-sig", "replace").rstrip("\r\n")
    names = [name.strip().strip('"').lower() for name in re.split(r"[\t,]", line)]
    if any(name in names for name in _TEXTS):
        return None
    cells = line.count("\t") + 1
    if cells not in _UNNAMED:
        reason = (
            "must have a line of names with contents or text, or be id and text, or id, text and "
            f"title, between tabs, got {line[:60]!r}"
        )
        raise CorpusError(path, 1, reason)
    return _UNNAMED[cells]


def write_rows(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write the rows of a data set as a corpus; nothing is left if that fails.

    Raises:
        CorpusError: a row has no text.
    """
    clear_partial(target.parent, target.name)
    target.with_name(f".{target.name}.part").unlink(missing_ok=True)  # of a killed 0.1.0
    write_whole(target, _lines(rows, target))


def _lines(rows: Iterable[Mapping[str, Any]], target: Path) -> Iterator[str]:
    for number, row in enumerate(rows):
        kept = {k: row[k] for k in ("contents", "title", "text") if isinstance(row.get(k), str)}
        if "contents" not in kept and "text" not in kept:
            reason = f"must have a column contents or text, got {sorted(row)}"
            raise CorpusError(target, number + 1, reason)
        identity = next((row[name] for name in _IDS if row.get(name) is not None), number)
        yield json.dumps({"id": identity} | kept, ensure_ascii=False) + "\n"

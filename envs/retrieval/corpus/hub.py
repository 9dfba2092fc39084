"""Corpora as people have them, written once as JSONL: files of other layouts, data sets of the Hub.

``local_corpus("psgs_w100.tsv", "indexes/wiki")`` is ``indexes/wiki.corpus.jsonl``, and so is
``local_corpus("owner/wiki:en", "indexes/wiki")``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from research_rl.envs.questions import (
    PASSAGE_COLUMNS,
    BadRows,
    QuestionError,
    container_of,
    hub_rows,
    is_compressed,
    is_hub_name,
    is_saved_data_set,
    open_rows,
    passages_in,
)
from research_rl.envs.retrieval.corpus.corpus import CorpusError, parse_passage
from research_rl.envs.system import clear_partial, progress_bar, sha256_of, write_whole

log = logging.getLogger(__name__)
_ASKED = frozenset({"question", "query", "golden_answers", "paragraphs"})
_WHOLE = "no row left out"
_KNOWN = (
    "must be JSONL, a JSON array, CSV, TSV or parquet (text perhaps as .gz or .zst), a folder of "
    "BEIR (corpus.jsonl) or one that save_to_disk of datasets wrote"
)


def local_corpus(
    corpus: str | Path,
    out: str | Path,
    split: str = "train",
    progress: bool = False,
    strict: bool = False,
) -> Path:
    """Return the corpus as a JSONL file: itself, or what it holds as ``OUT.corpus.jsonl``.

    What was written before is not written again; ``OUT.corpus.jsonl.from`` says what it is.

    Args:
        corpus: a file, a folder, or owner/name[:config] of a data set on the Hub, of passages or of
            questions that bring their paragraphs; passages without an id are numbered.
        out: the index folder beside which the file is written.
        split: which split to read.
        progress: show how many passages are written.
        strict: refuse rows that cannot be read; otherwise they are left out with a warning, unless
            most are such.

    Raises:
        CorpusError: it is nothing known, there is no such file and the Hub does not give it, or the
            file to write holds something else.
        ImportError: a package is needed that is not installed; says how to install it.
    """
    path = Path(corpus)
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):  # BEIR
        path = path / name if (path / name).is_file() else path
    if not path.exists() and not is_hub_name(corpus):
        return path
    if path.is_file() and _is_jsonl(path):
        return path
    identity = _identity(path) if path.exists() else f"{corpus} {split}"
    if path.is_dir() and split != "train":
        identity += f" {split}"
    target, note = Path(f"{out}.corpus.jsonl"), Path(f"{out}.corpus.jsonl.from")
    if target.exists():
        kept = note.read_text(encoding="utf-8").strip() if note.is_file() else "a file of yours"
        kept, _, left_out = kept.partition("\n")
        if kept != identity:
            wanted = path if path.exists() else corpus
            reason = f"must hold {wanted}, got {kept}; remove it, or choose another --out"
            raise CorpusError(target, None, reason)
        if left_out == _WHOLE or not strict:
            if left_out not in ("", _WHOLE):
                log.warning("%s: was written before, %s", target, left_out)
            return target
    else:
        note.unlink(missing_ok=True)
    try:
        bad = BadRows()
        rows = _rows_of(path, corpus, split, bad)
        with progress_bar(rows, desc="converting", unit=" rows", disable=not progress) as bar:
            write_rows(bar, target, bad, strict)
    except QuestionError as error:
        raise CorpusError(error.file, error.line, error.reason) from error
    write_whole(note, f"{identity}\n{f'{bad.count} rows left out' if bad else _WHOLE}\n")
    return target


def grown_corpus(
    corpus: str | Path, index: str | Path, progress: bool = False, strict: bool = False
) -> Path:
    """Return a corpus that an index grows to as a JSONL file; see ``local_corpus``.

    A converted one lies beside that of the index, under a name of its own.
    """
    path = Path(corpus)
    if path.is_file() and _is_jsonl(path):
        return path
    name = _identity(path) if path.exists() else str(corpus)
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return local_corpus(corpus, f"{index}.{mark}", progress=progress, strict=strict)


def _is_jsonl(path: Path) -> bool:
    """Return whether a file can be indexed as it is.

    Raises:
        CorpusError: it is nothing that can be read.
    """
    if _document_kind(path) in ("md", "rst", "html", "pdf", "docx"):
        raise CorpusError(path, None, f"must hold passages, got a document{_documents(path)}")
    try:
        container = container_of(path)
    except QuestionError as error:
        raise CorpusError(error.file, error.line, error.reason) from error
    if container is None:
        with path.open("rb") as file:
            start = file.read(40)
        told = f"{_KNOWN}, got a file that begins with {start!r}{_documents(path)}"
        raise CorpusError(path, None, told)
    return container == "lines" and not is_compressed(path) and not _needs_converting(path)


def _document_kind(path: Path) -> str | None:
    from research_rl.envs.documents import kind_of  # it needs the encoders, which import this room

    return kind_of(path.name)


def _documents(path: Path) -> str:
    """What to do with documents, such as a folder of markdown or a PDF; "" for something else."""
    folder = path if path.is_dir() else path.parent
    files = path.rglob("*") if path.is_dir() else iter([path])
    if not any(_document_kind(file) for file in files if file.is_file()):
        return ""
    return f"; documents become a corpus with: research corpus build {folder} --out corpus.jsonl"


def _needs_converting(path: Path) -> bool:
    """Whether the first line is no passage as ours are, and one of another known layout."""
    with path.open("rb") as lines:
        line = next((line for line in lines if line.strip()), b"")
    try:
        parse_passage(line)
    except ValueError:
        try:
            return bool(next(passages_in(json.loads(line), 0), None))
        except (ValueError, RecursionError):
            return False
    return False


def _identity(path: Path) -> str:
    """Return what tells a source from another one of the same name: of files their contents."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return f"{path.name} " + " ".join(sha256_of(file) for file in files)


def _rows_of(path: Path, corpus: str | Path, split: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    if not path.exists():
        yield from enumerate(hub_rows(str(corpus), split, streaming=True), 1)
        return
    if path.is_dir() and not is_saved_data_set(path):
        reason = f"{_KNOWN}, got a folder of something else{_documents(path)}"
        raise CorpusError(path, None, reason)
    where = split if path.is_dir() else None
    yield from open_rows(path, where, PASSAGE_COLUMNS, bad)[1]


def write_rows(
    rows: Iterable[tuple[int, Any]], target: Path, bad: BadRows, strict: bool = False
) -> None:
    """Write the passages of rows as a corpus; nothing is left if that fails.

    Args:
        rows: each with its line.
        target: file to write.
        bad: rows that cannot be read so far; takes more.
        strict: refuse bad rows.

    Raises:
        CorpusError: there are bad rows and ``strict``, or most rows are bad.
    """
    clear_partial(target.parent, target.name)
    target.with_name(f".{target.name}.part").unlink(missing_ok=True)  # of a killed 0.1.0
    write_whole(target, _lines(rows, target, bad, strict))
    if bad:
        log.warning("%s", bad.warning(target))


def _lines(
    rows: Iterable[tuple[int, Any]], target: Path, bad: BadRows, strict: bool
) -> Iterator[str]:
    """Yield the lines of a corpus; equal paragraphs of several questions come once."""
    good = 0
    paragraphs: set[str] = set()
    for number, (line, row) in enumerate(rows):
        try:
            found = list(passages_in(row, number))
        except ValueError as error:
            bad.add(line, str(error))
            continue
        good += 1
        asked = bool(_ASKED & row.keys())
        for passage in found:
            if not (asked and passage["id"] in paragraphs):
                yield json.dumps(passage, ensure_ascii=False) + "\n"
            if asked:
                paragraphs.add(passage["id"])
    if bad and (strict or bad.are_most(good)):
        raise CorpusError(target, bad.line, bad.reason)

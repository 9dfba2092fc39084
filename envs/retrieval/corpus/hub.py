"""Corpora by name: a data set of the Hugging Face Hub, written as JSONL once.

``local_corpus("owner/wiki:en", "indexes/wiki")`` is ``indexes/wiki.corpus.jsonl``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research_rl.envs.questions import QuestionError, hub_rows, is_hub_name
from research_rl.envs.retrieval.corpus.corpus import CorpusError
from research_rl.envs.system import clear_partial, write_whole


def local_corpus(corpus: str | Path, out: str | Path, split: str = "train") -> Path:
    """Return the corpus as a file: itself, or a data set of the Hub as ``OUT.corpus.jsonl``.

    A data set that was written before is not read again; ``OUT.corpus.jsonl.from`` says which.

    Args:
        corpus: a file, or owner/name[:config] of a data set with columns ``contents``, or ``text``
            and perhaps ``title``; rows without an id are numbered.
        out: the index folder beside which the file is written.
        split: which split to read.

    Raises:
        CorpusError: there is no such file and the Hub does not give it, or the file to write holds
            something else.
        ImportError: the Hub is needed and ``datasets`` is not installed.
    """
    if Path(corpus).exists() or not is_hub_name(corpus):
        return Path(corpus)
    target, note = Path(f"{out}.corpus.jsonl"), Path(f"{out}.corpus.jsonl.from")
    if target.exists():
        kept = note.read_text(encoding="utf-8").strip() if note.is_file() else "a file of yours"
        if kept == f"{corpus} {split}":
            return target
        reason = f"must hold {corpus}, got {kept}; remove it, or choose another --out"
        raise CorpusError(target, None, reason)
    rows = hub_rows(str(corpus), split, streaming=True)
    note.unlink(missing_ok=True)
    try:
        write_rows(rows, target)
    except QuestionError as error:
        raise CorpusError(error.file, error.line, error.reason) from error
    write_whole(note, f"{corpus} {split}\n")
    return target


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
        identity = row.get("id", row.get("_id", number))
        yield json.dumps({"id": identity} | kept, ensure_ascii=False) + "\n"

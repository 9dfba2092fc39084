"""The ceiling of a set of questions over a corpus, found again wherever the set is evaluated.

An audit of ``data/dev.jsonl`` lies in ``data/dev.audit``, with the filtered file that it wrote. It
knows questions by their content, so that it is used for no others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research_rl.envs import Question
from research_rl.envs.questions import content_hash
from research_rl.envs.retrieval.index import read_manifest

log = logging.getLogger(__name__)
AUDIT = "audit.json"
AUDIT_FORMAT = 1


def default_folder(questions: str | Path) -> Path | None:
    """Return where the audit of questions lies: ``data/dev.audit`` for data/dev.jsonl.

    With a split it is named too: ``data/all.dev.audit`` for data/all.jsonl#dev. None for what is
    neither a file nor a folder.
    """
    path, split = _place(questions)
    if not path.exists():
        return None
    name = path.name.partition(".")[0] + (f".{split}" if split else "")
    return path.with_name(f"{name}.audit")


def _place(questions: str | Path) -> tuple[Path, str]:
    path, split = Path(questions), ""
    if not path.exists():
        name, _, split = str(questions).rpartition("#")
        path = Path(name) if name else path
    return path, split


def read_audits(questions: str | Path) -> list[dict[str, Any]]:
    """Return the audits in the folder of a question file, and in the one that is named after it.

    For ``data/hotpotqa#dev`` that is data/hotpotqa.dev.audit, or data/hotpotqa/dev.audit.
    """
    path, split = _place(questions)
    beside = default_folder(questions)
    inside = [path / f"{split}.audit"] if split and path.is_dir() else []
    found = []
    for folder in (path.parent, *inside, *([beside] if beside else [])):
        try:
            audit = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(audit, dict) and audit.get("format") == AUDIT_FORMAT:
            found.append(audit)
    return found


def searched_corpus(searched: object) -> str | None:
    """Return the SHA-256 of the corpus of an index folder; None of what is not one."""
    if not isinstance(searched, str):
        return None
    return str(read_manifest(searched)["corpus"]["sha256"])


def unanswerable(
    source: str | Path | None, whole: Callable[[], Sequence[Question]], searched: object
) -> frozenset[str] | None:
    """Return the ids of the questions that have no answer in what is searched.

    Args:
        source: where the questions were read from.
        whole: gives all that are there; it is not called where no audit is.
        searched: the index folder, or a retriever.

    Returns:
        None where no audit is there; one of other questions or of another corpus is said in a
        warning and not used.
    """
    if source is None or not (audits := read_audits(source)):
        return None
    content, corpus = content_hash(whole()), searched_corpus(searched)
    ours = [a for a in audits if content in (a["questions"]["content"], a["kept"]["content"])]
    fitting = [audit for audit in ours if audit["index"]["corpus"] == corpus]
    if fitting:
        return frozenset(fitting[-1]["missing"])
    other = "over another corpus" if ours else "of other questions"
    if ours and corpus is None:
        other = "over an index folder, and what is searched is none"
    log.warning("the audit of %s is one %s, so it gives no ceiling here", source, other)
    return None


def ceiling_of(
    source: str | Path | None,
    whole: Sequence[Question],
    asked: Sequence[Question],
    searched: object,
) -> float | None:
    """Return the share of questions that can be answered from what is searched, 0 to 1.

    Args:
        source: where the questions were read from.
        whole: all that were read there.
        asked: those of them that count.
        searched: the index folder, or a retriever.

    Returns:
        None where ``unanswerable`` knows nothing.
    """
    missing = unanswerable(source, lambda: whole, searched) if asked else None
    if missing is None:
        return None
    return sum(question.id not in missing for question in asked) / len(asked)

"""The ceiling of a set of questions over a corpus, found again wherever the set is evaluated.

An audit of ``data/dev.jsonl`` lies in ``data/dev.audit``, with the filtered file that it wrote. It
knows questions by their content, so that it is used for no others, and its folder belongs to the
file that it was made of.
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
FILTERED = "questions.jsonl"
AUDIT_FORMAT = 1
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_COMPRESSED = (".gz", ".zst")


def default_folder(questions: str | Path) -> Path | None:
    """Return where the audit of questions lies: ``data/dev.audit`` for data/dev.jsonl.

    With a split it is named too: ``data/all.dev.audit`` for data/all.jsonl#dev. Only the ending of
    the file goes, so ``data/nq.train.jsonl`` has data/nq.train.audit. None for what is neither a
    file nor a folder.
    """
    path, split = _place(questions)
    if not path.exists():
        return None
    name = _without(_without(path.name, _COMPRESSED), _ENDINGS)
    return path.with_name(_folder_name(name, split))


def _former_folder(questions: str | Path) -> Path:
    """Where its audit lay when a name ended at its first dot: ``nq.audit`` of nq.train.jsonl."""
    path, split = _place(questions)
    return path.with_name(_folder_name(path.name.partition(".")[0], split))


def _folder_name(name: str, split: str) -> str:
    return f"{name}.{split}.audit" if split else f"{name}.audit"


def _without(name: str, endings: Sequence[str]) -> str:
    found = next((e for e in endings if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(found)]


def check_same_questions(folder: Path, questions: str | Path) -> None:
    """Check that a folder holds no audit of another question file.

    An audit that does not say of what it was made is taken for one of these questions.

    Raises:
        FileExistsError: it does, and its filtered questions would be lost; or these questions are
            the file that would be written.
    """
    if (folder / FILTERED).absolute() == _place(questions)[0].absolute():
        raise FileExistsError(
            f"--out must be a folder in which {FILTERED} can be written, got {folder}, where it is "
            "the file of the questions; give --out another folder"
        )
    made_of = _made_of(_read(folder))
    if made_of and not _is_of(folder, made_of, questions):
        raise FileExistsError(
            f"{folder} must hold no audit of another question file, got that of {made_of} (asked "
            f"for {questions}); give --out another folder, or delete this one"
        )


def _is_of(folder: Path, made_of: str, questions: str | Path) -> bool:
    """Whether a record names these questions; beside them the name is enough, for both may move."""
    then, now = _place(made_of), _place(questions)
    if then[1] != now[1]:
        return False
    beside = folder.absolute().parent == now[0].absolute().parent
    return then[0].absolute() == now[0].absolute() or (beside and then[0].name == now[0].name)


def _made_of(audit: dict[str, Any] | None) -> str:
    """The questions that an audit was made of, "" where it does not say so."""
    told = (audit or {}).get("questions")
    source = told.get("source") if isinstance(told, dict) else None
    return source if isinstance(source, str) else ""


def _place(questions: str | Path) -> tuple[Path, str]:
    path, split = Path(questions), ""
    if not path.exists():
        name, mark, after = str(questions).rpartition("#")
        path, split = (Path(name), after) if mark else (path, "")
    return path, split


def read_audits(questions: str | Path) -> list[dict[str, Any]]:
    """Return the audits in the folder of a question file, and in the one that is named after it.

    For ``data/hotpotqa#dev`` that is data/hotpotqa.dev.audit, or data/hotpotqa/dev.audit.
    """
    path, split = _place(questions)
    beside, former = default_folder(questions), _former_folder(questions)
    inside = [path / f"{split}.audit"] if split and path.is_dir() else []
    places = [path.parent, *inside, *([beside] if beside else [])]
    made_of = "" if former in places else _made_of(_read(former))
    if made_of and _is_of(former, made_of, questions):
        places.insert(0, former)
    found = [audit for folder in places if (audit := _read(folder)) is not None]
    return [audit for audit in found if audit.get("format") == AUDIT_FORMAT]


def _read(folder: Path) -> dict[str, Any] | None:
    """The audit in a folder; None where there is none that can be read."""
    try:
        audit = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return audit if isinstance(audit, dict) else None


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

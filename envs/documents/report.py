"""The report of a corpus: what was read, what was not and why, what stands there twice, sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class CorpusReport:
    """What became of a folder.

    Args:
        files: read, by kind.
        again: how many of them were read now; the others had been before and have not changed.
        passed: files that are no documents, by reason.
        unreadable: (file, reason) of each that could not be read, a folder with / at its end.
        notes: (file, what to know of how it was read).
        empty: files without a passage.
        lengths: characters of each passage that was written.
        titles: how many different ones.
        same: (id, id of an earlier passage with the same text) of those left out.
        near: (id, id of an earlier passage, share of words in common) of those nearly the same.
        near_dropped: whether these were left out too.
    """

    files: Counter[str] = field(default_factory=Counter)
    again: int = 0
    passed: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    titles: int = 0
    same: list[tuple[str, str]] = field(default_factory=list)
    near: list[tuple[str, str, float]] = field(default_factory=list)
    near_dropped: bool = False


def report_record(report: CorpusReport) -> dict[str, Any]:
    """Return a report as JSON holds it."""
    ordered = sorted(report.lengths)
    return {
        "files": dict(sorted(report.files.items())),
        "read_again": report.again,
        "passed_over": dict(sorted(report.passed.items())),
        "unreadable": [{"file": file, "reason": reason} for file, reason in report.unreadable],
        "notes": [{"file": file, "note": note} for file, note in report.notes],
        "without_text": report.empty,
        "passages": len(ordered),
        "titles": report.titles,
        "characters": {
            "all": sum(ordered),
            "least": ordered[0] if ordered else 0,
            "median": ordered[len(ordered) // 2] if ordered else 0,
            "most": ordered[-1] if ordered else 0,
        },
        "same": [{"passage": one, "as": other} for one, other in report.same],
        "near": [
            {"passage": one, "as": other, "likeness": round(share, 3)}
            for one, other, share in report.near
        ],
        "near_left_out": report.near_dropped,
    }

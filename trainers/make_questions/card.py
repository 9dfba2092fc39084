"""The card of a making: how many questions came through, and why the others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from research_rl.trainers.make_questions.checks import (
    CROSSES,
    MODEL_FAILED,
    NOT_NEEDED,
    ONE_SEARCH,
    TOO_LONG,
    UNASKED,
    UNFOUND,
)
from research_rl.trainers.make_questions.journal import Journal
from research_rl.trainers.make_questions.make import Made

_HELP = {
    ONE_SEARCH: "give a smaller --top-k (and the same model.env.top_k), smaller passages, or more "
    "documents",
    UNFOUND: "give a larger --top-k, or another kind of index",
    NOT_NEEDED: "the documents repeat themselves: look for duplicates",
    CROSSES: "give smaller --val and --test (0 leaves a split out), or more documents",
    TOO_LONG: "give a larger --max-words",
    UNASKED: "give a larger --budget",
    MODEL_FAILED: "see the errors on the card; what failed is not asked again in the same "
    "folder, so give --out another one",
}
"""Reason -> what helps."""
_MOST_ERRORS = 5


def making_record(
    made: Made, counts: Mapping[str, int], settings: Mapping[str, Any], journal: Journal
) -> dict[str, Any]:
    """Return all figures, as ``card.json`` holds them.

    Args:
        made: what came of it.
        counts: questions of each split.
        settings: what was asked for.
        journal: knows how often the model was asked, and how often it failed.
    """
    reasons = Counter(reason for _, _, reason in made.refused)
    documents = Counter(made.splits.values())
    return {
        "settings": dict(settings),
        "drafts": len(made.kept) + len(made.refused),
        "kept": len(made.kept),
        "questions": dict(counts),
        "documents": {split: documents[split] for split in counts},
        "links": {"all": made.crossing[1], "cut_by_the_split": made.crossing[0]},
        "hops": dict(sorted(Counter(len(draft.hops) for draft, _ in made.kept).items())),
        "refused": dict(reasons.most_common()),
        "model_calls": journal.calls,
        "model_errors": len(journal.errors),
        "first_errors": [error[:200] for error in dict.fromkeys(journal.errors)][:_MOST_ERRORS],
    }


def card_of_questions(record: Mapping[str, Any], spent: bool) -> str:
    """Return the card as text.

    Args:
        record: see ``making_record``.
        spent: whether the budget of model calls was used up before the end.
    """
    drafts = max(1, record["drafts"])
    lines = [
        "# Questions",
        "",
        f"{record['kept']} of {record['drafts']} drafts are kept ({record['kept'] / drafts:.0%}).",
        "",
        "| split | questions | documents |",
        "|---|---|---|",
        *(
            f"| {split} | {count} | {record['documents'][split]} |"
            for split, count in record["questions"].items()
        ),
        "",
        f"{record['links']['cut_by_the_split']} of {record['links']['all']} links between "
        "documents lead from one split to another and are not asked about.",
    ]
    if record["refused"]:
        lines += ["", "| thrown away because | drafts |", "|---|---|"]
        lines += [f"| {reason} | {count} |" for reason, count in record["refused"].items()]
    if failed := record["model_errors"]:
        lines += ["", f"The model failed in {failed} of {record['model_calls']} calls, with:", ""]
        lines += [f"- {' '.join(error.split())}" for error in record["first_errors"]]
    if spent:
        lines += ["", "The budget of model calls was spent before the drafts were."]
    return "\n".join(lines) + "\n"


def way_on(record: Mapping[str, Any]) -> str:
    """Return what most drafts fell to and what helps, where none came through."""
    cut, links = record["links"]["cut_by_the_split"], record["links"]["all"]
    if links and cut == links:
        return (
            f"all {links} links between documents lead from one split to another; give smaller "
            "--val and --test (0 leaves a split out), or more documents"
        )
    if not record["drafts"]:
        return "nothing was drafted: the rules find no relations in these texts; try --from served"
    reason, count = max(record["refused"].items(), key=lambda item: item[1])
    told = f"{count} of {record['drafts']} drafts fell to: {reason}"
    return f"{told}; {_HELP[reason]}" if reason in _HELP else told

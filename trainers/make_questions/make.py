"""The making of questions: proposed, checked, dealt to train, validation and test, counted.

The folder holds ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, ``refused.jsonl`` with the
reason of each that was thrown away, ``card.md`` and ``card.json``, and ``journal.jsonl``, by which
a killed run goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from research_rl.agents.methods import NaiveGeneration
from research_rl.envs import Question, Retriever
from research_rl.envs.rewards import exact_match
from research_rl.envs.system import write_whole
from research_rl.trainers.audit import overlaps
from research_rl.trainers.make_questions.checks import (
    CROSSES,
    KNOWN_BY_HEART,
    MODEL_FAILED,
    REPEATED,
    UNASKED,
    IndexChecks,
    Limits,
    form_of,
    split_of,
)
from research_rl.trainers.make_questions.drafts import Draft, NoDraft, Proposer, Texts
from research_rl.trainers.make_questions.facts import Facts
from research_rl.trainers.make_questions.journal import Journal
from research_rl.trainers.make_questions.metered import SPENT, Metered
from research_rl.trainers.make_questions.splits import QUESTION_SPLITS, split_documents

_BATCH = 64


@dataclass(frozen=True)
class MakingPlan:
    """What is made.

    Args:
        count: questions at most, of all splits together.
        most: drafts that are looked at, at most.
        limits: of the checks.
        shares: of the documents for ``val`` and ``test``.
        seed: of the split.
    """

    count: int = 1000
    most: int = 20_000
    limits: Limits = field(default_factory=Limits)
    shares: Mapping[str, float] = field(default_factory=lambda: {"val": 0.1, "test": 0.2})
    seed: int = 0


@dataclass
class Made:
    """What came of it.

    Args:
        kept: the questions, with split, in the order in which they were accepted.
        refused: (id, question, reason) of the others.
        splits: document -> split.
        crossing: links between documents that the split has cut, of all.
    """

    kept: list[tuple[Draft, str]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    splits: Mapping[str, str] = field(default_factory=dict)
    crossing: tuple[int, int] = (0, 0)


def make_questions(
    proposer: Proposer,
    texts: Texts,
    facts: Facts,
    retriever: Retriever,
    plan: MakingPlan,
    journal: Journal,
    model: Metered | None = None,
    advance: Callable[[int, int], object] = lambda drafts, kept: None,
) -> Made:
    """Look at drafts until there are enough questions, or no more drafts.

    Args:
        proposer: proposes drafts.
        texts: the corpus of the index.
        facts: of the corpus, for rivals.
        retriever: searches the index.
        plan: what is made.
        journal: knows what became of drafts that were looked at before.
        model: must not know the answers without searching; None asks none.
        advance: called with the drafts that were looked at, and the questions that are kept.

    Raises:
        RetrieverUnavailable: the index does not answer.
        ModelUnavailable: the model does not.
    """
    links = proposer.links()
    splits = split_documents(texts.documents, links, plan.shares, plan.seed)
    cut = sum(len({splits[one] for one in group}) > 1 for group in links)
    made = Made(splits=splits, crossing=(cut, len(links)))
    checks = IndexChecks(texts, retriever, plan.limits, facts.objects)
    asked: set[str] = set()
    drafts = islice(proposer.drafts(splits), plan.most)
    looked = 0
    while batch := list(islice(drafts, _BATCH)):
        reasons = _verdicts(batch, texts, plan, splits, checks, journal, model)
        for one, reason in zip(batch, reasons, strict=True):
            folded = " ".join(one.text.split()).casefold()
            if len(made.kept) >= plan.count:
                break
            looked += 1
            if isinstance(one, NoDraft) or reason:
                made.refused.append((one.id, one.text, reason))
            elif folded in asked:
                made.refused.append((one.id, one.text, REPEATED))
            else:
                asked.add(folded)
                made.kept.append((one, split_of(one, texts, splits) or ""))
        advance(looked, len(made.kept))
        if len(made.kept) >= plan.count or (model is not None and model.spent):
            break
    return _without_leaks(made)


def _verdicts(
    batch: Sequence[Draft | NoDraft],
    texts: Texts,
    plan: MakingPlan,
    splits: Mapping[str, str],
    checks: IndexChecks,
    journal: Journal,
    model: Metered | None,
) -> list[str]:
    """Return why each of a batch is refused, "" where it is not."""
    known: dict[str, str] = {one.id: one.reason for one in batch if isinstance(one, NoDraft)}
    drafts = [one for one in batch if isinstance(one, Draft) and one.id not in journal.verdicts]
    fresh: dict[str, str] = {}
    for draft in drafts:
        reason = form_of(draft, texts, plan.limits)
        if not reason and split_of(draft, texts, splits) is None:
            reason = CROSSES
        fresh[draft.id] = reason
    open_ones = [draft for draft in drafts if not fresh[draft.id]]
    fresh |= {
        draft.id: reason for draft, reason in zip(open_ones, checks.reasons(open_ones), strict=True)
    }
    open_ones = [draft for draft in open_ones if not fresh[draft.id]]
    if model is not None and open_ones:
        fresh |= _by_heart(open_ones, model)
    for draft in drafts:
        if fresh[draft.id] not in (UNASKED, MODEL_FAILED):
            journal.add_verdict(draft.id, fresh[draft.id])
    return [known[one.id] if one.id in known else _verdict(one.id, fresh, journal) for one in batch]


def _verdict(draft: str, fresh: Mapping[str, str], journal: Journal) -> str:
    return fresh[draft] if draft in fresh else journal.verdicts[draft]


def _by_heart(drafts: Sequence[Draft], model: Metered) -> dict[str, str]:
    """Return why drafts are refused that a model answers from memory, or could not be asked."""
    refused = {}
    for one in NaiveGeneration(model).answer([_question(draft) for draft in drafts]):
        if one.error == SPENT:
            refused[one.question.id] = UNASKED
        elif one.error is not None:
            refused[one.question.id] = MODEL_FAILED
        elif one.text and exact_match(one.text, one.question.answers) == 1:
            refused[one.question.id] = KNOWN_BY_HEART
    return refused


def _without_leaks(made: Made) -> Made:
    """Leave out validation and test questions that training asks in nearly the same words."""
    by_split = {split: [d for d, s in made.kept if s == split] for split in QUESTION_SPLITS}
    asked = {split: [_question(d) for d in drafts] for split, drafts in by_split.items()}
    held = asked["val"] + asked["test"]
    leaks = {i for i, other in overlaps(held, asked["train"]).items() if other.leaks}
    made.refused += [(d.id, d.text, REPEATED) for d, _ in made.kept if d.id in leaks]
    made.kept = [(d, split) for d, split in made.kept if d.id not in leaks]
    return made


def _question(draft: Draft) -> Question:
    return Question(draft.id, draft.text, draft.answers)


def question_row(draft: Draft, split: str, texts: Texts, proposer: str) -> dict[str, Any]:
    """Return the line of a question, in FlashRAG's layout."""
    steps = [
        {"question": hop.query, "answer": hop.answer, "passage": texts.corpus[hop.place].id}
        | {"title": texts.title(hop.place)}
        for hop in draft.hops
    ]
    titles = list(dict.fromkeys(texts.title(hop.place) for hop in draft.hops))
    known = {
        "hops": len(draft.hops),
        "type": "bridge",
        "split": split,
        "gold_ids": list(dict.fromkeys(texts.corpus[hop.place].id for hop in draft.hops)),
        "supporting_titles": titles,
        "chain": [hop.query for hop in draft.hops],
        "decomposition": steps,
        "documents": list(dict.fromkeys(texts.documents[hop.place] for hop in draft.hops)),
        "proposer": proposer,
    }
    return {
        "id": draft.id,
        "question": draft.text,
        "golden_answers": list(draft.answers),
        "metadata": known,
    }


def write_questions(made: Made, texts: Texts, proposer: str, out: Path) -> dict[str, int]:
    """Write the question files and what was thrown away; return how many each split has.

    A split without questions has no file.
    """
    counts = Counter(split for _, split in made.kept)
    for split in QUESTION_SPLITS:
        rows = [question_row(draft, split, texts, proposer) for draft, s in made.kept if s == split]
        if rows:
            write_whole(out / f"{split}.jsonl", map(_line, rows))
        else:
            (out / f"{split}.jsonl").unlink(missing_ok=True)
    names = ("id", "question", "reason")
    write_whole(
        out / "refused.jsonl", (_line(dict(zip(names, one, strict=True))) for one in made.refused)
    )
    return {split: counts[split] for split in QUESTION_SPLITS}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"

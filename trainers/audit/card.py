"""The result of an audit: its numbers, its card, and the questions worth asking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research_rl.envs import Question
from research_rl.envs.questions import content_hash
from research_rl.trainers.audit.ceiling import AUDIT_FORMAT
from research_rl.trainers.audit.coverage import (
    Coverage,
    answers_of,
    gold_of,
    is_closed,
    is_unanswerable,
    stands_in,
    tokens_of,
)
from research_rl.trainers.audit.models import Tried
from research_rl.trainers.audit.overlap import Overlap
from research_rl.trainers.audit.reach import Reach

BUCKETS = {
    "one search": "the question as it stands finds the answer",
    "oracle": "only oracle queries find the answer",
    "in corpus": "it stands in the corpus, and these searches do not find it",
    "missing": "it stands nowhere in the corpus",
    "unanswerable": "is that there is none, as the question's metadata say",
}
"""The bucket of a question by what finds its answer."""
_OF_UNANSWERABLE = (
    " An unanswerable question counts, for that it has no answer can be said. The other shares of "
    "questions and answers are of the questions that have one."
)


@dataclass(frozen=True)
class Audit:
    """Everything that an audit found out.

    Args:
        questions: that were looked at.
        coverage: what of their evidence is in the corpus.
        reach: what searches find.
        index: what was searched: folder, kind, corpus (SHA-256).
        seen: how they overlap with training questions, by id; None where there were none.
        train: how many training questions there were.
        copies: id -> id of an earlier question with the same text.
        tried: what a model did with them; None without a model.
    """

    questions: Sequence[Question]
    coverage: Coverage
    reach: Reach
    index: Mapping[str, Any]
    seen: Mapping[str, Overlap] | None = None
    train: int = 0
    copies: Mapping[str, str] = field(default_factory=dict)
    tried: Tried | None = None

    def bucket(self, question: Question) -> str:
        """Return the bucket of a question."""
        if is_unanswerable(question):
            return "unanswerable"
        if self.coverage.missing(question):
            return "missing"
        if self.reach.by_question[question.id].answer:
            return "one search"
        return "oracle" if self.reach.by_oracle[question.id].answer else "in corpus"

    def dropped(self, question: Question) -> str | None:
        """Return why a question is left out of the filtered file, None if it is not."""
        if self.coverage.missing(question):
            return "not in the corpus"
        if question.id in self.copies:
            return "asked before"
        if self.seen and (known := self.seen.get(question.id)) and known.leaks:
            return "in the training questions"
        return None

    def kept(self) -> list[Question]:
        """Return the questions of the filtered file, each with what is known of it."""
        return [
            Question(q.id, q.text, q.answers, {**q.metadata, "audit": self.facts(q)})
            for q in self.questions
            if self.dropped(q) is None
        ]

    def facts(self, question: Question) -> dict[str, Any]:
        """Return what the filtered file says of a question."""
        facts: dict[str, Any] = {"bucket": self.bucket(question)}
        if gold := gold_of(question):
            facts["gold"] = {
                "in_corpus": len(self.coverage.gold[question.id]),
                "by_question": len(self.reach.by_question[question.id].gold),
                "by_oracle": len(self.reach.by_oracle[question.id].gold),
                "of": len(gold),
            }
        if answer_in_question(question):
            facts["answer_in_question"] = True
        if self.tried is not None:
            facts["closed_book"] = self.tried.closed_book[question.id]
            if self.tried.samples:
                facts["pass"] = [self.tried.right[question.id], self.tried.samples]
        return facts


def answer_in_question(question: Question) -> bool:
    """Return whether a gold answer stands in the question; yes and no do not count."""
    text = tokens_of(question.text)
    return any(stands_in(answer, text) for answer in answers_of(question))


def numbers_of(audit: Audit) -> dict[str, Any]:
    """Return the figures of an audit: shares from 0 to 1, None where nothing is known."""
    asked = audit.questions
    with_gold = [q for q in asked if gold_of(q)]
    with_answer = [q for q in asked if not is_unanswerable(q)]
    open_ = [q for q in with_answer if not is_closed(q)]
    found = {"question": audit.reach.by_question, "oracle": audit.reach.by_oracle}
    numbers: dict[str, Any] = {
        "questions": len(asked),
        "passages": audit.coverage.passages,
        "yes_or_no": len(with_answer) - len(open_),
        "unanswerable": len(asked) - len(with_answer),
        "ceiling": _share(not audit.coverage.missing(q) for q in asked),
        "answer_in_corpus": _share(bool(audit.coverage.answers[q.id]) for q in open_),
        "gold_in_corpus": _mean(_found(audit.coverage.gold[q.id], q) for q in with_gold),
        "answer_in_question": _share(map(answer_in_question, with_answer)),
        "copies": len(audit.copies),
    }
    for name, reached in found.items():
        numbers[f"answer_by_{name}"] = _share(reached[q.id].answer for q in with_answer)
        numbers[f"gold_by_{name}"] = _mean(_found(reached[q.id].gold, q) for q in with_gold)
        numbers[f"all_gold_by_{name}"] = _share(
            len(reached[q.id].gold) == len(gold_of(q)) for q in with_gold
        )
    if audit.seen is not None:
        near = [one for one in audit.seen.values() if not one.same]
        numbers["train"] = {
            "questions": audit.train,
            "same": sum(one.same for one in audit.seen.values()),
            "near": len(near),
            "near_with_its_answer": sum(one.answer for one in near),
        }
    if (tried := audit.tried) is not None:
        numbers["model"] = {"name": tried.model, "closed_book": _share(tried.closed_book.values())}
        numbers["model"] |= {"errors": tried.errors}
        if tried.samples:
            numbers["model"] |= {"samples": tried.samples, "pass@1": round(tried.pass_at_1, 4)}
            numbers["model"] |= {
                "pass@k": round(tried.pass_at_k, 4),
                "mixed": round(tried.mixed, 4),
            }
    return numbers


def audit_record(audit: Audit, source: str) -> dict[str, Any]:
    """Return what ``audit.json`` holds, from which later evaluations read the ceiling."""
    return {
        "format": AUDIT_FORMAT,
        "questions": {"source": source, "content": content_hash(audit.questions)},
        "kept": {"content": content_hash(audit.kept()), "count": len(audit.kept())},
        "index": dict(audit.index),
        "top_k": audit.reach.k,
        "rounds": audit.reach.rounds,
        "numbers": numbers_of(audit),
        "buckets": _buckets(audit),
        "dropped": _dropped(audit),
        "missing": [q.id for q in audit.questions if audit.coverage.missing(q)],
    }


def audit_card(audit: Audit, source: str) -> str:
    """Return the card as Markdown."""
    numbers = numbers_of(audit)
    k, rounds = audit.reach.k, audit.reach.rounds
    parts = [
        f"# Audit of {source}",
        f"{numbers['questions']:,} questions ({numbers['yes_or_no']:,} with yes or no, "
        f"{numbers['unanswerable']:,} unanswerable) over "
        f"{numbers['passages']:,} passages of {audit.index['folder']} ({audit.index['kind']}).",
        f"**Ceiling: {in_100(numbers['ceiling'])} %.** Of so many questions an answer, or for yes "
        "and no all known evidence, stands in the corpus; no policy that answers from it has a "
        "higher exact match. An answer counts where its words stand next to each other in a "
        "passage, normalised as for exact match, so another way to write a date or a number counts "
        "as missing, and a word that stands there by chance as found."
        + (_OF_UNANSWERABLE if numbers["unanswerable"] else ""),
        "## In the corpus and in reach",
        table([["", "%"], *_reach_lines(numbers, k, rounds)]),
        "## By what finds the answer",
        table(_bucket_lines(audit)),
        "## What to look at",
        *_warnings(audit, numbers),
    ]
    if audit.tried is not None:
        parts += [f"## {numbers['model']['name']} before training", *_model_lines(audit, numbers)]
    kept, dropped = len(audit.kept()), _dropped(audit)
    why = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    parts.append(f"Kept in the filtered file: {kept:,}; left out: {why or 'none'}.")
    return "\n\n".join(parts) + "\n"


def _reach_lines(numbers: Mapping[str, Any], k: int, rounds: int) -> Iterator[list[str]]:
    oracle = f"{rounds} rounds of oracle queries, {k} passages each"
    for name, text in (
        ("gold_in_corpus", "gold passages that are in the corpus"),
        ("answer_in_corpus", "answers (without yes and no) that stand in the corpus"),
        ("gold_by_question", f"gold passages among the first {k} for the question"),
        ("all_gold_by_question", f"questions with all of them among the first {k}"),
        ("answer_by_question", f"questions with an answer among the first {k}"),
        ("gold_by_oracle", f"gold passages, {oracle}"),
        ("all_gold_by_oracle", f"questions with all of them, {oracle}"),
        ("answer_by_oracle", f"questions with an answer, {oracle}"),
    ):
        yield [text, in_100(numbers[name])]


def _bucket_lines(audit: Audit) -> Iterator[list[str]]:
    counts = _buckets(audit)
    tried = audit.tried
    yield ["bucket", "meaning", "questions", *(["closed-book EM, %"] if tried else [])]
    for name, meaning in BUCKETS.items():
        line = [name, meaning, f"{counts.get(name, 0):,}"]
        if tried is not None:
            own = [q.id for q in audit.questions if audit.bucket(q) == name]
            line.append(in_100(_share(tried.closed_book[i] for i in own)))
        yield line


def _warnings(audit: Audit, numbers: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"- Answer in the question: {in_100(numbers['answer_in_question'])} % (a comparison names "
        "both, otherwise it can be copied)."
    )
    yield f"- Asked twice within the set: {numbers['copies']:,}."
    if audit.seen is None:
        yield "- No training questions were given (--train), so overlap with them is not known."
        return
    train = numbers["train"]
    yield (
        f"- Of {train['questions']:,} training questions: {train['same']:,} are asked again, "
        f"{train['near']:,} nearly so, of which {train['near_with_its_answer']:,} with the same "
        "answer."
    )


def _model_lines(audit: Audit, numbers: Mapping[str, Any]) -> Iterator[str]:
    model = numbers["model"]
    yield f"- Right without searching (closed-book EM): {in_100(model['closed_book'])} %."
    if model.get("samples"):
        yield (
            f"- With searches, {model['samples']} rollouts at temperature 1: pass@1 "
            f"{in_100(model['pass@1'])} %, pass@{model['samples']} {in_100(model['pass@k'])} %; "
            f"{in_100(model['mixed'])} % have right and wrong rollouts, from which a group learns."
        )
    if model["errors"]:
        yield f"- The server gave no answer {model['errors']:,} times; these count as wrong."


def table(lines: Iterable[Sequence[str]]) -> str:
    """Return lines as a Markdown table, the first as its head."""
    head, *rest = lines
    drawn = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in drawn)


def in_100(share: float | None) -> str:
    """Return a share as ``78.7``, a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}"


def _buckets(audit: Audit) -> dict[str, int]:
    counts = Counter(map(audit.bucket, audit.questions))
    return {name: counts[name] for name in BUCKETS}


def _dropped(audit: Audit) -> dict[str, int]:
    return dict(Counter(r for q in audit.questions if (r := audit.dropped(q)) is not None))


def _found(names: Iterable[str], question: Question) -> float:
    return len(set(names)) / len(gold_of(question))


def _share(values: Iterable[bool]) -> float | None:
    return _mean(map(float, values))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return round(sum(known) / len(known), 4) if known else None

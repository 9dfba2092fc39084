"""Reader of questions with their gold answers, in every layout that is published.

The layout of a row is told from its content, as the container of a file is (see files.py):

| layout | a row has |
|---|---|
| FlashRAG | id, question, golden_answers, metadata |
| ReSearch | question, reward_model.ground_truth = [answers], extra_info.id |
| Search-R1, verl | prompt (chat messages) or question, reward_model.ground_truth.target |
| HotpotQA | _id, question, answer, type, level, supporting_facts, context |
| 2WikiMultihopQA | the same and evidences |
| MuSiQue | id, question, answer, answer_aliases, answerable, paragraphs, question_decomposition |
| plain | question, answers or answer |

Others (KILT, MS MARCO, SQuAD, DPR, TriviaQA, PopQA, Bamboogle) get these names first: layouts.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from research_rl.envs.questions.bad_rows import BadRows, QuestionError
from research_rl.envs.questions.files import SPLIT_MARK, RawRow, open_rows
from research_rl.envs.questions.hops import hops_of
from research_rl.envs.questions.layouts import plain_row, rows_in
from research_rl.envs.types import UNANSWERABLE, Question

log = logging.getLogger(__name__)
_BULKY = frozenset({"context", "paragraphs", "passages", "ctxs", "retrieval_result"})
_SUPPORT = ("gold_ids", "supporting_titles")
_CARRIED = (
    *("type", "level", "evidences", "question_decomposition", "hops", "gold_ids", "split"),
    "supporting_titles",
)


def read_questions(source: str | Path, split: str | None = None) -> list[Question]:
    """Return the questions of a file, of a folder's ``<split>`` file or of a Hub data set.

    Questions that their data set marks as unanswerable (MuSiQue-Full) are passed over; a row whose
    metadata say ``unanswerable: true`` is kept, with the answer "unknown" if it has none. Those
    with the same text and different ids are kept, with a warning.

    Args:
        source: a path, or a Hugging Face name: ``owner/name`` or ``owner/name:config``. Each may
            end in ``#split``, for places that take a name alone.
        split: which split of a folder or Hub data set; of one file, keep the questions whose
            metadata says so.

    Raises:
        QuestionError: nothing there, no questions, a bad line, a question without answers, hops
            that are no whole number or an id used twice.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    if split is None and SPLIT_MARK in str(source) and not Path(source).exists():
        source, _, split = str(source).rpartition(SPLIT_MARK)
    chosen_by_metadata = Path(source).is_file()
    bad = BadRows()
    source, rows = open_rows(source, split, bad=bad)
    questions: list[Question] = []
    lines: dict[str, int] = {}
    unanswerable = 0
    for number, (line, row) in enumerate(_unfolded(rows), 1):
        item = "" if number == line else f"item {number}: "
        try:
            plain = plain_row(row)
            if isinstance(plain, Mapping) and plain.get("answerable") is False:
                unanswerable += 1
                continue
            question = _question(plain)
        except ValueError as error:
            bad.add(line, f"{item}{error}")
            continue
        if question.id in lines:
            used = f"is already used in line {lines[question.id]}"
            bad.add(line, f"{item}id {question.id!r} {used}")
            continue
        lines[question.id] = line
        questions.append(question)
    if bad:
        raise QuestionError(source, bad.line, bad.reason)
    if unanswerable:
        log.warning("%s: passed over %d questions marked unanswerable", source, unanswerable)
    if not questions:
        raise QuestionError(source, None, "holds no questions")
    if split and chosen_by_metadata:
        questions = _of_split(source, questions, split)
    same = SameTexts()
    for question in questions:
        same.add(question)
    if same.count:
        log.warning(same.warning(source))
    return questions


def _unfolded(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield the questions of rows, each with the line of its row."""
    for line, row in rows:
        for one in rows_in(row):
            yield line, one


class SameTexts:
    """Questions that differ in nothing but their id: each would be asked and counted.

    Attributes:
        count: questions whose text an earlier one has too, apart from case and white space.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first_of: dict[bytes, str] = {}
        self._first_pair = ("", "")

    def add(self, question: Question) -> None:
        """Note a question; a digest of 16 bytes is kept of its text."""
        folded = " ".join(question.text.split()).casefold().encode("utf-8", "surrogatepass")
        first = self._first_of.setdefault(
            hashlib.blake2b(folded, digest_size=16).digest(), question.id
        )
        if first != question.id:
            self.count += 1
            self._first_pair = self._first_pair if self.count > 1 else (first, question.id)

    def warning(self, source: object) -> str:
        """Return the warning about these questions."""
        first, second = self._first_pair
        return (
            f"{source}: {self.count} questions have the text of another, the first {second!r} that "
            f"of {first!r}; each is kept"
        )


def question_from_dict(row: RawRow) -> Question:
    """Return the question that a row of any layout holds.

    A row without an id gets one that is made from its text. Fields that hold JSON as text, and
    lists of answers written as text, are read as what they hold.

    Raises:
        ValueError: no question text or no answers, or hops that are no whole number; the message
            says what the row has.
    """
    return _question(plain_row(row))


def _question(row: Any) -> Question:
    """Return the question of a row with plain names."""
    if not isinstance(row, Mapping):
        raise ValueError(f"a question must be a JSON object, got {type(row).__name__}")
    text = _text(row)
    identity = _identity(row, text)
    answers = _answers(row, identity)
    return Question(id=identity, text=text, answers=answers, metadata=_metadata(row))


def _text(row: RawRow) -> str:
    text: Any = row.get("question", row.get("text"))
    if text is None and "prompt" in row:
        text = _from_prompt(row["prompt"])
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"question must be text, got {text!r}; fields: {sorted(map(str, row))}")
    return text.strip()


def _from_prompt(prompt: Any) -> str | None:
    """Return the question in a chat prompt: what follows the last "Question:" of its last turn.

    Search-R1's template ends in ``Question: {question}``.
    """
    content: Any
    if isinstance(prompt, str):
        content = prompt
    elif isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        content = prompt[-1].get("content")
    else:
        return None
    return content.rpartition("Question:")[2] if isinstance(content, str) else None


def _identity(row: RawRow, text: str) -> str:
    extra = row.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    found = (row.get("id"), row.get("_id"), extra.get("id"), extra.get("index"))
    identity: Any = next((value for value in found if value is not None), None)
    if identity is None:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"q_{digest[:12]}"
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise ValueError(f"id must be a string or an integer, got {identity!r}")
    # Search-R1's merged test file counts each of its data sets from test_0.
    dataset = row.get("data_source") if "reward_model" in row else None
    return f"{dataset}/{identity}" if dataset else str(identity)


def _answers(row: RawRow, identity: str) -> tuple[str, ...]:
    """Return the distinct gold answers that are not blank, in their order."""
    found: Any = None
    if isinstance(model := row.get("reward_model"), Mapping):
        truth = model.get("ground_truth")
        found = truth.get("target") if isinstance(truth, Mapping) else truth
    for field in ("golden_answers", "answers", "answer"):
        found = row.get(field) if found is None else found
    answers = [found] if isinstance(found, str) else found
    if answers is None:
        raise ValueError(
            f"question {identity!r} has no answers (golden_answers, answers, answer or "
            f"reward_model.ground_truth); fields: {sorted(map(str, row))}"
        )
    aliases = row.get("answer_aliases") or []
    if not _are_texts(answers) or not _are_texts(aliases):
        raise ValueError(f"answers of question {identity!r} must be strings, got {answers!r}")
    kept = dict.fromkeys(answer for answer in chain(answers, aliases) if answer.strip())
    if not kept and _says_unanswerable(row):
        return UNANSWERABLE
    if not kept:
        raise ValueError(
            f"question {identity!r} has no answers, got {answers!r}; where it has none, say so "
            "with metadata.unanswerable: true"
        )
    return tuple(kept)


def _says_unanswerable(row: RawRow) -> bool:
    metadata = row.get("metadata")
    return isinstance(metadata, Mapping) and metadata.get("unanswerable") is True


def _are_texts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)


def _metadata(row: RawRow) -> dict[str, Any]:
    """Return the row's other facts: no paragraphs, and hops where they can be told."""
    given = row.get("metadata")
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"metadata must be an object, got {type(given).__name__}")
    given = {key: value for key, value in (given or {}).items() if value is not None}
    found = {key: row[key] for key in _CARRIED if row.get(key) is not None}
    merged = {key: value for key, value in (found | given).items() if key not in _BULKY}
    if row.get("data_source"):
        merged.setdefault("dataset", row["data_source"])
    facts = {**row, **given}
    if "supporting_titles" not in merged and (titles := _supporting_titles(facts)):
        merged["supporting_titles"] = titles
    if (hops := hops_of(merged.get("hops"))) is None:
        hops = _hops(facts, merged) or None
    if hops is not None:
        merged["hops"] = hops
    else:
        merged.pop("hops", None)
    return merged


def _supporting_titles(row: RawRow) -> list[str]:
    """Return the titles of the supporting paragraphs, each once, in their order."""
    facts = row.get("supporting_facts")
    titles: Iterable[Any] = ()
    if isinstance(facts, Mapping):  # the Hub's copies: {"title": [...], "sent_id": [...]}
        titles = facts.get("title") or ()
    elif isinstance(facts, list):
        titles = (fact[0] for fact in facts if isinstance(fact, (list, tuple)) and fact)
    elif isinstance(paragraphs := row.get("paragraphs"), list):
        rows = (p for p in paragraphs if isinstance(p, Mapping))
        titles = (p.get("title") for p in rows if p.get("is_supporting"))
    return list(dict.fromkeys(title for title in titles if isinstance(title, str)))


def _hops(row: RawRow, metadata: RawRow) -> int:
    """Return how many paragraphs lead to the answer; 0 if the row does not show it."""
    if match := re.match(r"(\d)hop", str(row.get("id", ""))):  # MuSiQue: 3hop1__...
        return int(match[1])
    steps = row.get("question_decomposition")
    return len(steps) if isinstance(steps, list) else len(metadata.get("supporting_titles", ()))


def _of_split(source: str | Path, questions: list[Question], split: str) -> list[Question]:
    kept = [question for question in questions if question.metadata.get("split") == split]
    if not kept:
        found = sorted({str(question.metadata.get("split")) for question in questions})
        raise QuestionError(source, None, f"has no questions of split {split!r}, got {found}")
    return kept


def content_hash(questions: Sequence[Question]) -> str:
    """Return a short hash of ids, texts, gold answers and what is known to support them."""
    digest = hashlib.sha256()
    for question in questions:
        known = [question.metadata.get(name) for name in _SUPPORT]
        line = json.dumps([question.id, question.text, list(question.answers), *known], default=str)
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()[:16]

"""Real questions for a small model: a corpus of short paragraphs and disjoint sets of questions.

The questions come with their paragraphs (HotpotQA, 2WikiMultihopQA and MuSiQue in FlashRAG's
layout). More questions for training may come without: those are kept whose subjects have a
paragraph in the corpus, from which the answer is at most one step away.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SETS = ("hotpotqa", "2wikimultihopqa", "musique")
WORDS = 40  # of a paragraph that are kept
LONGEST = 8  # words of a title that is looked for in a question
COMMON = re.compile(r"^(the|in|a) \w+$|^\w+ of (birth|death)$|^(new york|united states)$")
Row = dict[str, Any]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write rows of JSON beside the file, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".partial")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    beside.write_text("".join(lines), encoding="utf-8")
    beside.rename(file)


def read_rows(file: Path) -> list[Row]:
    """Read rows of JSON."""
    lines = file.read_text(encoding="utf-8").split("\n")  # a text may hold other ends of lines
    return [json.loads(line) for line in lines if line]


def prepare(
    data: Path, out: Path, tested: int, further: Sequence[Path] = (), found: bool = False
) -> None:
    """Write a corpus of short paragraphs and four disjoint files of questions.

    A question is kept if one of its answers stands in its own paragraphs after they were cut, or is
    yes or no. ``test.jsonl`` has ``tested`` of them, ``val.jsonl`` 100; of the rest two in three
    may be shown (``shown.jsonl``) and one in three is for GRPO (``train.jsonl``), with those of the
    files ``further`` that the corpus reaches, see ``reached``.

    With ``found`` GRPO and validation ask only questions whose answer must be found, see
    ``must_be_found``; demonstrations and the test are the same.
    """
    corpus: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name in SETS:
        for row in read_rows(data / f"{name}_corpus.jsonl"):
            title, _, body = row["contents"].partition("\n")
            cut = " ".join(body.split()[:WORDS])
            corpus.setdefault(f"{title}\n{cut}", str(len(corpus)))
            texts[title.strip('"')] = texts.get(title.strip('"'), "") + cut + "\n"
    asked = []
    for name in SETS:
        for row in read_rows(data / f"{name}_questions.jsonl"):
            own = " ".join(texts.get(t, "") for t in row["metadata"].get("supporting_titles", ()))
            answers = row["golden_answers"]
            closed = answers[0].casefold() in ("yes", "no")
            if closed or any(a.casefold() in own.casefold() for a in answers):
                asked.append({**row, "id": f"{name}/{row['id']}"})
    random.Random("split").shuffle(asked)
    test, val, rest = asked[:tested], asked[tested : tested + 100], asked[tested + 100 :]
    cut_at = 2 * len(rest) // 3
    parts = {"shown": rest[:cut_at], "train": rest[cut_at:], "val": val, "test": test}
    if further:
        bodies: dict[str, str] = {}
        for title, body in texts.items():
            bodies[_plain(title)] = bodies.get(_plain(title), "") + body
        held_out = [*parts["test"], *parts["val"]]
        taken = {_asked(row) for row in asked}
        more = [
            {**row, "id": f"{file.stem}/{row['id']}"}  # the sets number theirs alike
            for file in further
            for row in read_rows(file)
            if _asked(row) not in taken
        ]
        parts["train"] = [*parts["train"], *reached(more, bodies, held_out)]
    if found:
        for part in ("train", "val"):
            parts[part] = [row for row in parts[part] if must_be_found(row)]
    write_rows(out / "corpus.jsonl", ({"id": i, "contents": c} for c, i in corpus.items()))
    for part, rows in parts.items():  # test.jsonl comes last and says that all are there
        write_rows(out / f"{part}.jsonl", rows)
    print({part: len(rows) for part, rows in parts.items()}, f"{len(corpus)} passages", flush=True)


def must_be_found(row: Row) -> bool:
    """Whether the answer is neither yes or no nor among the words of the question."""
    answers = [answer.casefold() for answer in row["golden_answers"]]
    question = row["question"].casefold()
    return answers[0] not in ("yes", "no") and not any(answer in question for answer in answers)


def reached(
    rows: Iterable[Row], bodies: Mapping[str, str], held_out: Sequence[Row]
) -> Iterator[Row]:
    """Yield questions that a second search can answer, without a subject of one that is held out.

    A title of two words or more that stands in the question names a subject. The answer must be
    one of two subjects or a yes or no about them, or stand in a subject's paragraph, or in one of
    a title that this paragraph names.

    Args:
        rows: questions; their paragraphs are not known.
        bodies: the paragraphs of each title, in lower case and without what is in brackets.
        held_out: questions with ``supporting_titles`` in their metadata.
    """
    never = {_plain(t) for row in held_out for t in row["metadata"].get("supporting_titles", ())}
    for row in rows:
        subjects = set(_titles_in(row["question"], bodies))
        if not subjects or subjects & never:
            continue
        answer = row["golden_answers"][0].casefold()
        if answer in subjects or answer in ("yes", "no"):
            known = len(subjects) > 1
        else:
            near = " ".join(bodies[subject] for subject in subjects)
            far = " ".join(bodies[title] for title in _titles_in(near, bodies))
            known = re.search(rf"\b{re.escape(answer)}\b", f"{near} {far}".casefold()) is not None
        if known:
            yield {**row, "metadata": {"subjects": sorted(subjects)}}


def _titles_in(text: str, bodies: Mapping[str, str]) -> Iterator[str]:
    """Yield the longest titles of two words or more that stand in a text and have a paragraph."""
    words = [word.strip('?,.;:"()') for word in text.casefold().split()]
    words = [word.removesuffix("'s") for word in words]
    at = 0
    while at < len(words):
        for end in range(min(len(words), at + LONGEST), at + 1, -1):
            title = " ".join(words[at:end])
            # "the way", "place of birth": titles of something, but words of any question
            if title in bodies and not _common(title):
                yield title
                at = end - 1
                break
        at += 1


def _common(title: str) -> bool:
    return COMMON.search(title) is not None


def _plain(title: str) -> str:
    return title.strip('"').partition(" (")[0].casefold()


def _asked(row: Row) -> str:
    return " ".join(row["question"].casefold().split())

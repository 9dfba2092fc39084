"""Paragraphs that come with a question, as passages whose ids depend on their contents alone.

| layout | where they are | which support the answer |
|---|---|---|
| HotpotQA, 2Wiki | context: [[title, [sentence, ...]], ...] | supporting_facts name titles |
| Hub copies, FlashRAG | context: {title: [...], sentences or content: [[...]]} | the same |
| MuSiQue | paragraphs: [{title, paragraph_text, is_supporting}] | is_supporting |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research_rl.envs.questions.files import RawRow
from research_rl.envs.types import Passage


@dataclass(frozen=True)
class Context:
    """The paragraphs of one question.

    Args:
        passages: each once, in their order.
        gold_ids: ids of those that support the answer; empty unless all of them are there.
    """

    passages: tuple[Passage, ...] = ()
    gold_ids: tuple[str, ...] = ()


def passage_of(title: str, text: str) -> Passage:
    """Return a paragraph as a passage: contents ``"Title"``, newline, text; id from the contents.

    Equal paragraphs of any data sets have equal ids, so that corpora can be joined.
    """
    contents = f'"{title.strip()}"\n{text.strip()}'
    digest = hashlib.sha256(contents.encode("utf-8", "surrogatepass")).hexdigest()
    return Passage(f"p{digest[:16]}", contents)


def context_of(row: RawRow, supporting_titles: Sequence[str]) -> Context:
    """Return the paragraphs of a row in any of the layouts; empty where it has none.

    Args:
        row: as the file has it.
        supporting_titles: what ``supporting_facts`` names.

    Raises:
        ValueError: the paragraphs are of no known shape.
    """
    metadata = row.get("metadata")
    for place in (row, metadata if isinstance(metadata, Mapping) else {}):
        if place.get("paragraphs"):
            return _flagged(place["paragraphs"])
        if place.get("context"):
            return _titled(place["context"], supporting_titles)
    return Context()


def _flagged(paragraphs: Any) -> Context:
    """Return MuSiQue's paragraphs, which say themselves whether they support the answer."""
    passages, gold = [], []
    for paragraph in _list(paragraphs, "paragraphs"):
        if not isinstance(paragraph, Mapping):
            raise ValueError(f"a paragraph must be an object, got {type(paragraph).__name__}")
        title, text = paragraph.get("title"), paragraph.get("paragraph_text")
        passages.append(passage_of(_text(title, "title"), _text(text, "paragraph_text")))
        if paragraph.get("is_supporting"):
            gold.append(passages[-1].id)
    return Context(_once(passages), tuple(dict.fromkeys(gold)))


def _titled(context: Any, supporting_titles: Sequence[str]) -> Context:
    """Return paragraphs of which supporting facts name the titles."""
    titles, passages = [], []
    for title, sentences in _pairs(context):
        joined = " ".join(_text(s, "a sentence").strip() for s in _list(sentences, "sentences"))
        titles.append(_text(title, "title"))
        passages.append(passage_of(titles[-1], joined))
    gold = [p.id for t, p in zip(titles, passages, strict=True) if t in set(supporting_titles)]
    whole = set(supporting_titles) <= set(titles)
    return Context(_once(passages), tuple(dict.fromkeys(gold)) if whole else ())


def _pairs(context: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (title, sentences) of each paragraph."""
    if isinstance(context, Mapping):
        titles = _list(context.get("title"), "context.title")
        sentences = _list(context.get("sentences", context.get("content")), "context.sentences")
        if len(titles) != len(sentences):
            raise ValueError(f"context has {len(titles)} titles for {len(sentences)} paragraphs")
        yield from zip(titles, sentences, strict=True)
        return
    for pair in _list(context, "context"):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"a paragraph must be [title, sentences], got {str(pair)[:60]!r}")
        yield pair[0], pair[1]


def _once(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    return tuple({passage.id: passage for passage in passages}.values())


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list, got {type(value).__name__}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    return value

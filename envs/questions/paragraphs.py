"""Passages in rows: of a corpus, and those that come with a question.

The ids of a question's paragraphs depend on their contents alone:

| layout | where they are | which support the answer |
|---|---|---|
| HotpotQA, 2Wiki | context: [[title, [sentence, ...]], ...] | supporting_facts name titles |
| Hub copies, FlashRAG | context: {title: [...], sentences or content: [[...]]} | the same |
| MuSiQue | paragraphs: [{title, paragraph_text, is_supporting}] | is_supporting |
| SQuAD | context: a text, and title | it |
| MS MARCO | passages: [{passage_text, is_selected}], or a list of each | is_selected |

A row of a corpus has its text as ``contents``, ``text``, ``passage`` (MS MARCO 2) or ``body``.
KILT's pages have a list of paragraphs as text, of which each is a passage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research_rl.envs.questions.files import RawRow
from research_rl.envs.questions.layouts import plain_row, rows_in
from research_rl.envs.types import Passage

_IDS = ("id", "_id", "docid", "pid", "passage_id", "wikipedia_id")
_TEXTS = ("contents", "text", "passage", "body")
_PLACES = ("context", "paragraphs", "passages")


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
    contents = f'"{title.strip()}"\n{text.strip()}' if title.strip() else text.strip()
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
        if isinstance(text := place.get("context"), str) and text.strip():
            title = place.get("title")
            whole = passage_of(title if isinstance(title, str) else "", text)
            return Context((whole,), (whole.id,))
        if place.get("context"):
            return _titled(place["context"], supporting_titles)
        if place.get("passages"):
            return _selected(place["passages"])
    return Context()


def passages_in(row: Any, number: int) -> Iterator[dict[str, Any]]:
    """Yield the passages of a row of any layout, as lines of a corpus.

    A row of a corpus keeps its id; without one its number is it. The paragraphs of a question come
    each with an id made from its contents.

    Args:
        row: of a corpus, or of a question file.
        number: of the row, from 0.

    Raises:
        ValueError: it holds no text that is known.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"must be an object, got {type(row).__name__}")
    name = next((name for name in _TEXTS if isinstance(row.get(name), str)), None)
    titles = (row[name] for name in ("title", "wikipedia_title") if row.get(name) is not None)
    title = next((t for t in titles if isinstance(t, str | int)), None)
    if name is not None and not any(row.get(place) for place in _PLACES):
        kept = {"id": _identity(row, number), "title": title}
        if title is None:
            kept.pop("title")
        yield kept | {"contents" if name == "contents" else "text": row[name]}
    elif isinstance(row.get("text"), list):
        yield from _page(row, str(title or ""), number)
    else:
        yield from _of_questions(row)


def _of_questions(row: RawRow) -> Iterator[dict[str, Any]]:
    found = 0
    for one in rows_in(row):
        for passage in context_of(plain_row(one), ()).passages:
            found += 1
            yield {"id": passage.id, "contents": passage.contents}
    if not found:
        fields = f"got {sorted(map(str, row))[:12]}"
        raise ValueError(f"must have a column contents or text, or paragraphs, {fields}")


def _page(row: RawRow, title: str, number: int) -> Iterator[dict[str, Any]]:
    """Yield the paragraphs of a page of KILT; headings and lists of references are none."""
    for place, text in enumerate(_list(row["text"], "text")):
        text = _text(text, "a paragraph").strip()
        if text and text != title and not text.startswith(("Section::::", "BULLET::::")):
            yield {"id": f"{_identity(row, number)}-{place}", "title": title, "text": text}


def _identity(row: RawRow, number: int) -> Any:
    return next((row[name] for name in _IDS if row.get(name) is not None), number)


def _selected(passages: Any) -> Context:
    """Return MS MARCO's passages, of which annotators selected some."""
    if isinstance(passages, Mapping):
        texts = _list(passages.get("passage_text"), "passages.passage_text")
        chosen = passages.get("is_selected") or [0] * len(texts)
    else:
        rows = [one for one in _list(passages, "passages") if isinstance(one, Mapping)]
        texts = [one.get("passage_text") for one in rows]
        chosen = [one.get("is_selected") for one in rows]
    found = [passage_of("", _text(text, "passage_text")) for text in texts]
    gold = [p.id for p, selected in zip(found, chosen, strict=True) if selected]
    return Context(_once(found), tuple(dict.fromkeys(gold)))


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

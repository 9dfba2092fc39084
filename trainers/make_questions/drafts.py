"""Drafts of questions: a chain of facts, each with its passage, before anything is checked."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from research_rl.agents.methods import split_sentences
from research_rl.envs import Passage
from research_rl.envs.documents import SEPARATOR
from research_rl.trainers.audit import Tokens, tokens_of

_POSSESSIVE = re.compile(r"(?<=\w)['’]s(?!\w)")


@dataclass(frozen=True)
class Hop:
    """One fact of a chain.

    Args:
        query: what to search for, with nothing in it that is not known by then.
        answer: what the passage says about it.
        place: of the passage in the corpus, from 0.
        subject: whom or what the fact is about.
    """

    query: str
    answer: str
    place: int
    subject: str


@dataclass(frozen=True)
class Draft:
    """A question that may be worth asking.

    Args:
        text: the question.
        answers: what counts as right, at least one.
        hops: the facts that lead to the answer, in order; none where they are not known.
        origin: id of the question it was made of, "" if it is new.
    """

    text: str
    answers: tuple[str, ...]
    hops: tuple[Hop, ...]
    origin: str = ""

    @property
    def id(self) -> str:
        """The same for equal drafts."""
        told = "\n".join((self.text, *self.answers, *(hop.query for hop in self.hops)))
        digest = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()
        return self.origin or f"{max(1, len(self.hops))}hop_{digest[:12]}"


@dataclass(frozen=True)
class NoDraft:
    """A proposal that is no draft: the model did not write what it was asked for.

    Args:
        id: of the proposal.
        reason: why it is none.
        text: the question if there is one, what the model wrote in its place, or its error.
    """

    id: str
    reason: str
    text: str = ""


class Proposer(ABC):
    """Proposes questions about a corpus."""

    @abstractmethod
    def links(self) -> Sequence[tuple[str, ...]]:
        """Return the documents that a question may span, by which they are split."""

    @abstractmethod
    def drafts(self, splits: Mapping[str, str]) -> Iterator[Draft | NoDraft]:
        """Yield drafts, the same ones in the same order for equal corpora.

        Args:
            splits: document -> ``train``, ``val`` or ``test``.
        """


class Texts:
    """The passages of a corpus, their documents, words and sentences.

    Args:
        corpus: the passages by place.
    """

    def __init__(self, corpus: Sequence[Passage]) -> None:
        self.corpus = corpus
        self.places: dict[str, int] = {}
        self.documents: list[str] = []
        for place, passage in enumerate(corpus):
            self.places[passage.id] = place
            self.documents.append(document_of(passage))
        self.tokens = lru_cache(maxsize=4096)(self._tokens)
        self.sentences = lru_cache(maxsize=4096)(self._sentences)

    def __len__(self) -> int:
        return len(self.documents)

    def title(self, place: int) -> str:
        """Return the title of a passage."""
        return title_and_text(self.corpus[place])[0]

    def _tokens(self, place: int) -> Tokens:
        return word_list(self.corpus[place].contents)

    def _sentences(self, place: int) -> tuple[tuple[str, Tokens], ...]:
        """The sentences of a passage without its title, each with its words."""
        _, text = title_and_text(self.corpus[place])
        return tuple((one, word_list(one)) for one in sentences_of(text))


def word_list(text: str) -> Tokens:
    """Return what is compared of a text, as the audit does it, without the ``'s`` behind a name.

    >>> word_list("Bakset's boss")
    ('bakset', 'boss')
    """
    return tokens_of(_POSSESSIVE.sub("", text))


def document_of(passage: Passage) -> str:
    """Return which document a passage is of: its file, or what comes first in its title."""
    if passage.source:
        return passage.source.partition("#")[0]
    return title_and_text(passage)[0].partition(SEPARATOR)[0].casefold()


def title_and_text(passage: Passage) -> tuple[str, str]:
    """Return the title of a passage, without the quotes around it, and its text."""
    title, newline, text = passage.contents.partition("\n")
    return (title.strip().strip('"'), text) if newline else ("", passage.contents)


_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+", re.MULTILINE)


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text; a line of a list or a table is one.

    A paragraph that is wrapped into lines is put together first.
    """
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        listed = _ITEM.search(paragraph) or "|" in paragraph or ":" in paragraph
        whole = paragraph if listed else " ".join(paragraph.split())
        for line in whole.split("\n"):
            found += split_sentences(_ITEM.sub("", line).strip())
    return [one for one in (" ".join(sentence.split()) for sentence in found) if one]

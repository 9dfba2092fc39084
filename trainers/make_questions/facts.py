"""Facts that can be read off a text without a language model.

``The boss of Bakset is Domlor.`` says a relation, and so do ``Bakset's boss is Domlor.``,
``Domlor is the boss of Bakset.`` and, on the page of Bakset, ``Boss: Domlor``. Any other sentence
that names the subject of its page and something else can be asked about by leaving this out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from research_rl.envs.documents import SEPARATOR
from research_rl.trainers.audit import Tokens
from research_rl.trainers.make_questions.drafts import Texts, word_list

_WORDS = r"[a-z][\w-]*(?: (?!of\b|is\b|was\b|are\b)[a-z][\w-]*){0,3}"
_NAME = r"(?!The\b|This\b|That\b|These\b|It\b|There\b|An?\b)[A-Z0-9`\"][^,;:.!?()«»]{0,60}?"
_IS = r"(?:is|was|are|were|is called|is named)"
_END = r"(?=[.;,!?]|$)"
_OBJECT = rf"(?P<object>(?!not\b)[^,;!?]{{1,60}}?){_END}"
_PATTERNS = tuple(
    map(
        re.compile,
        (
            rf"(?:^|(?<=[ ,]))[Tt]he (?P<relation>{_WORDS}) of (?P<subject>{_NAME}) {_IS} "
            rf"{_OBJECT}",
            rf"^(?P<subject>{_NAME})['’]s? (?P<relation>{_WORDS}) {_IS} {_OBJECT}",
            rf"^(?P<object>{_NAME}) {_IS} the (?P<relation>{_WORDS}) of (?P<subject>{_NAME}){_END}",
        ),
    )
)
_OWN = re.compile(rf"^(?:Its|His|Her|Their) (?P<relation>{_WORDS}) {_IS} {_OBJECT}")
_KEY = re.compile(r"^\**(?P<relation>[A-Z][\w -]{1,30})\**: \**(?P<object>[^:|]{1,60}?)\**\.?$")
_GAP = "___"
_SPAN = re.compile(
    r"`[^`]{1,40}`|(?<![\w-])\d[\d.,]*\d(?: [a-z]+)?|(?<=[a-z,] )[A-Z]\w+(?: [A-Z]\w+)*"
)
_CLOZES = 6
_LONGEST = 240


@dataclass(frozen=True)
class Fact:
    """Something said about a subject.

    Args:
        subject: as the text names it.
        object: what is said.
        place: of its passage in the corpus.
        relation: ``boss``; "" where the sentence is asked about with a gap in it.
        sentence: which says it.
    """

    subject: str
    object: str
    place: int
    relation: str
    sentence: str

    def describe(self, subject: str) -> str:
        """Return a description of the object by a name or a description of the subject."""
        if self.relation:
            return f"the {self.relation} of {subject}"
        return f"what is missing ({_GAP}) in «{self._gapped(subject)}»"

    @property
    def query(self) -> str:
        """What finds the passage, without the object."""
        if self.relation:
            return f"the {self.relation} of {self.subject}"
        return " ".join(self._gapped(self.subject).replace(_GAP, " ").split())

    def _gapped(self, subject: str) -> str:
        gapped = _replaced(self.sentence, self.object, _GAP).rstrip(".")
        return gapped if subject == self.subject else _replaced(gapped, self.subject, subject)


def _replaced(text: str, name: str, by: str) -> str:
    pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
    return re.sub(pattern, lambda _: by, text, count=1, flags=re.IGNORECASE)


class Facts:
    """All facts of a corpus.

    Args:
        texts: the corpus.
    """

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.names = _names(texts)
        """Words of a name -> it, as a title has it."""
        self.all: list[Fact] = []
        self._objects: dict[tuple[Tokens, Tokens], set[Tokens]] = defaultdict(set)
        for place in range(len(texts)):
            for fact in self._of(place):
                self.all.append(fact)
                if fact.relation:
                    key = (word_list(fact.relation), word_list(fact.subject))
                    self._objects[key].add(word_list(fact.object))

    def objects(self, query: str) -> set[Tokens]:
        """Return what the corpus says the things are that ``the boss of Bakset`` could be."""
        match = re.fullmatch(rf"the (?P<relation>{_WORDS}) of (?P<subject>.+)", query)
        if match is None:
            return set()
        return self._objects.get((word_list(match["relation"]), word_list(match["subject"])), set())

    def _of(self, place: int) -> Iterator[Fact]:
        subject = subject_of(self.texts.title(place))
        clozes = 0
        for sentence, _ in self.texts.sentences(place):
            found = list(_relations(sentence, subject, place))
            yield from found
            if not found and subject and len(sentence) <= _LONGEST:
                for fact in self._clozes(sentence, subject, place):
                    if clozes < _CLOZES:
                        clozes += 1
                        yield fact

    def _clozes(self, sentence: str, subject: str, place: int) -> Iterator[Fact]:
        """Yield what can be left out of a sentence that names the subject of its page."""
        named = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", sentence)
        if not named:
            return
        seen = {word_list(subject)}
        spans = [match.group().strip("`") for match in _SPAN.finditer(sentence)]
        for span in spans:
            key = word_list(span)
            apart = key and key not in seen and not set(key) & set(word_list(subject))
            if apart and len(re.findall(re.escape(span), sentence)) == 1:
                seen.add(key)
                yield Fact(subject, span, place, "", sentence.replace("`", ""))


def subject_of(title: str) -> str:
    """Return what a passage is about: the last part of its title, without what is in parentheses.

    >>> subject_of("Guide > Journal (1.2)")
    'Journal'
    """
    last = title.rpartition(SEPARATOR)[2].strip() or title
    return re.sub(r"\s*\([^()]*\)\s*$", "", last) or last


def _names(texts: Texts) -> dict[Tokens, str]:
    """Return the names that passages are titled by; those of many documents are no names."""
    of: dict[Tokens, set[str]] = defaultdict(set)
    shown: dict[Tokens, str] = {}
    for place in range(len(texts)):
        title = texts.title(place)
        for name in {subject_of(title), title.partition(SEPARATOR)[0]}:
            if key := word_list(name):
                of[key].add(texts.documents[place])
                shown.setdefault(key, name)
    return {
        key: shown[key] for key, documents in of.items() if len(documents) <= 2 and len(key) < 8
    }


def _relations(sentence: str, subject: str, place: int) -> Iterator[Fact]:
    """Yield the relations that a sentence states."""
    for pattern in _PATTERNS:
        if told := pattern.search(sentence):
            yield _fact(told["subject"], told["object"], place, told["relation"], sentence)
            return
    if subject and (match := _OWN.match(sentence) or _KEY.match(sentence)):
        relation = match["relation"]
        relation = relation[0].lower() + relation[1:] if relation[1:].islower() else relation
        yield _fact(subject, match["object"], place, relation, sentence)


def _fact(subject: str, found: str, place: int, relation: str, sentence: str) -> Fact:
    names = (one.strip().strip('`"*_ ') for one in (subject, found))
    first, second = (re.sub(r"\[([^\[\]]*)\]\([^()]*\)", r"\1", one) for one in names)
    return Fact(first.strip(), second.strip().rstrip("."), place, relation, sentence)

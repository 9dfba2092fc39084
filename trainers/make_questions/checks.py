"""The checks of a draft against the index that will be searched, without a language model.

They are asked in the order of ``REASONS``; the first one that fails is the reason. Passages that
state the same sentence in the same document, as neighbours that overlap do, count as one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from research_rl.envs import Retriever, search_checked
from research_rl.trainers.audit import UNTELLING, Tokens, stands_in
from research_rl.trainers.make_questions.drafts import Draft, Hop, Texts, word_list

NO_CHAIN = "the chain of passages is not known"
NO_TELLING_ANSWER = "the answer is empty, or yes or no"
TOO_LONG = "the answer is too long"
LEAKED = "the answer stands in the question"
BRIDGE_LEAKED = "the question names what is to be found on the way"
NOT_IN_EVIDENCE = "the answer of a hop does not stand in its passage"
CROSSES = "its documents lie in several splits"
UNFOUND = "a passage is not found by its own query"
ONE_SEARCH = "one search with the question brings the answer"
NOT_NEEDED = "the answer can be found without one of its passages"
RIVAL = "another passage or sentence supports another answer"
KNOWN_BY_HEART = "the model knows the answer without searching"
UNASKED = "the budget was spent before the model could be asked"
MODEL_FAILED = "the model failed when it was asked"
REPEATED = "it is asked already"
REASONS: Mapping[str, str] = {
    "g": f"{NO_TELLING_ANSWER}; {TOO_LONG}; {LEAKED}; {BRIDGE_LEAKED}; {NOT_IN_EVIDENCE}",
    "f": CROSSES,
    "a": UNFOUND,
    "b": ONE_SEARCH,
    "c": NOT_NEEDED,
    "d": RIVAL,
    "e": KNOWN_BY_HEART,
}
"""What each check refuses, in their order."""


_LONGEST_FILLER = 12


@dataclass(frozen=True)
class Limits:
    """What the checks go by.

    Args:
        top_k: passages that a search of the policy shows.
        wide: passages of a search that are looked at for other support.
        max_words: of an answer.
    """

    top_k: int = 5
    wide: int = 20
    max_words: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.wide or self.max_words < 1:
            raise ValueError(
                "top_k and max_words must be at least 1 and wide at least top_k, got "
                f"{self.top_k}, {self.max_words} and {self.wide}"
            )


def form_of(draft: Draft, texts: Texts, limits: Limits) -> str:
    """Return why a draft cannot be a question whatever the index finds; "" if it can."""
    answers = looked_for(draft)
    if not answers:
        return NO_TELLING_ANSWER
    if any(len(answer) > limits.max_words for answer in answers[:1]):
        return TOO_LONG
    asked = word_list(draft.text)
    if any(stands_in(answer, asked) for answer in answers):
        return LEAKED
    if len(draft.hops) < 2:
        return NO_CHAIN
    for hop in draft.hops:
        found = word_list(hop.answer)
        if not found or not stands_in(found, texts.tokens(hop.place)):
            return NOT_IN_EVIDENCE
    if any(stands_in(word_list(hop.answer), asked) for hop in draft.hops[:-1]):
        return BRIDGE_LEAKED
    last = texts.tokens(draft.hops[-1].place)
    return "" if any(stands_in(answer, last) for answer in answers) else NOT_IN_EVIDENCE


def split_of(draft: Draft, texts: Texts, splits: Mapping[str, str]) -> str | None:
    """Return the split of a draft's documents, None where they lie in several."""
    found = {splits[texts.documents[hop.place]] for hop in draft.hops}
    return found.pop() if len(found) == 1 else None


def looked_for(draft: Draft) -> list[Tokens]:
    """Return the words of each answer that can be looked for."""
    told = (word_list(answer) for answer in draft.answers)
    return [one for one in told if one and not (len(one) == 1 and one[0] in UNTELLING)]


class IndexChecks:
    """The checks that search.

    Args:
        texts: the corpus of the index.
        retriever: searches it.
        limits: what the checks go by.
        known: the other objects that the corpus gives for a query such as ``the boss of Bakset``.
    """

    def __init__(
        self,
        texts: Texts,
        retriever: Retriever,
        limits: Limits,
        known: Callable[[str], Collection[Tokens]] = lambda query: (),
    ) -> None:
        self.texts, self.retriever, self.limits, self.known = texts, retriever, limits, known

    def reasons(self, drafts: Sequence[Draft]) -> list[str]:
        """Return why each draft is refused, "" where it is not; one search for all of them.

        Raises:
            RetrieverUnavailable: the index does not answer.
        """
        queries = list(
            dict.fromkeys(q for d in drafts for q in (d.text, *(hop.query for hop in d.hops)))
        )
        found = search_checked(self.retriever, queries, self.limits.wide) if queries else []
        places = {
            query: [self.texts.places[p.id] for p in row if p.id in self.texts.places]
            for query, row in zip(queries, found, strict=True)
        }
        return [self._reason(draft, places) for draft in drafts]

    def _reason(self, draft: Draft, found: Mapping[str, list[int]]) -> str:
        copies = [self._copies(hop, found) for hop in draft.hops]
        for hop, own in zip(draft.hops, copies, strict=True):
            if not own & set(found[hop.query][: self.limits.top_k]):
                return UNFOUND
        answers = looked_for(draft)
        if self._shows(found[draft.text][: self.limits.top_k], answers):
            return ONE_SEARCH
        if self._needless(draft, copies, answers, found):
            return NOT_NEEDED
        return RIVAL if self._has_rival(draft, copies, found) else ""

    def _copies(self, hop: Hop, found: Mapping[str, list[int]]) -> set[int]:
        """The passage of a hop, and those found of its document that say the same sentence."""
        said = self._evidence(hop)
        document = self.texts.documents[hop.place]
        return {hop.place} | {
            place
            for place in found[hop.query]
            if self.texts.documents[place] == document and stands_in(said, self.texts.tokens(place))
        }

    def _evidence(self, hop: Hop) -> Tokens:
        """The sentence of a passage that a hop rests on: it says the answer, and most of the query.

        The answer itself where no sentence holds it whole.
        """
        answer, asked = word_list(hop.answer), set(word_list(hop.query))
        holding = [
            words
            for _, words in self.texts.sentences(hop.place)
            if words and stands_in(answer, words)
        ]
        return max(holding, key=lambda words: len(asked & set(words)), default=answer)

    def _shows(self, places: Sequence[int], answers: Sequence[Tokens]) -> bool:
        return any(stands_in(one, self.texts.tokens(p)) for p in places for one in answers)

    def _needless(
        self,
        draft: Draft,
        copies: Sequence[set[int]],
        answers: Sequence[Tokens],
        found: Mapping[str, list[int]],
    ) -> bool:
        """Whether a passage could be taken away and the answer still be found.

        So it is where an earlier passage holds the answer; where another passage names the subject
        of a hop and its answer; and where another one names the start of the chain and its end.
        """
        for own in copies[:-1]:
            if self._shows(sorted(own), answers):
                return True
        start = word_list(draft.hops[0].subject)
        for hop, own in zip(draft.hops, copies, strict=True):
            others = [p for p in {*found[hop.query], *found[draft.text]} if p not in own]
            ends = answers if hop is draft.hops[-1] else [word_list(hop.answer)]
            if self._links(others, word_list(hop.subject), ends):
                return True
            every = [p for p in others if not any(p in one for one in copies)]
            if self._links(every, start, answers):
                return True
        return False

    def _links(self, places: Sequence[int], subject: Tokens, ends: Sequence[Tokens]) -> bool:
        """Whether a passage says one of the ends of a subject: in a sentence that names both.

        On a page that is titled by the subject every sentence is about it.
        """
        for place in places if subject else ():
            own = stands_in(subject, word_list(self.texts.title(place)) or ("",))
            for _, words in self.texts.sentences(place):
                if (own or stands_in(subject, words)) and any(stands_in(e, words) for e in ends):
                    return True
        return False

    def _has_rival(
        self, draft: Draft, copies: Sequence[set[int]], found: Mapping[str, list[int]]
    ) -> bool:
        """Whether the corpus gives another answer to a hop.

        As a relation read off any of its passages, or as a sentence that is the evidence with
        other words in place of the answer.
        """
        for hop, own in zip(draft.hops, copies, strict=True):
            ours = [word_list(hop.answer)]
            ours += looked_for(draft) if hop is draft.hops[-1] else []
            if any(other not in ours for other in self.known(hop.query)):
                return True
            said = self._evidence(hop)
            before, after = _around(said, ours[0])
            if len(before) + len(after) < 2:
                continue
            for place in {*found[hop.query], *found[draft.text], *own}:
                for _, words in self.texts.sentences(place):
                    filler = _filled(words, before, after)
                    if filler and not any(stands_in(one, filler) for one in ours):
                        return True
        return False


def _around(words: Tokens, answer: Tokens) -> tuple[Tokens, Tokens]:
    """Return what stands before and behind an answer."""
    size = len(answer)
    for start in range(len(words) - size + 1):
        if words[start : start + size] == answer:
            return words[:start], words[start + size :]
    return (), ()


def _filled(words: Tokens, before: Tokens, after: Tokens) -> Tokens:
    """Return what stands between the same words in another sentence, () where it is not like it."""
    for start in range(len(words) - len(before) - len(after)):
        if words[start : start + len(before)] != before:
            continue
        begin = start + len(before)
        if not after:
            return words[begin:] if len(words) - begin <= _LONGEST_FILLER else ()
        for end in range(begin + 1, min(len(words), begin + _LONGEST_FILLER) + 1):
            if words[end : end + len(after)] == after:
                return words[begin:end]
    return ()

"""Gold demonstrations: episodes played from a question's own evidence, without any language model.

A data set that names the paragraphs behind a question shows how it is answered: search for what
the question names, read who or what comes next, search for that, answer. Played through the real
``Episode`` and the real index, that is a rollout of good form::

    <think> I need to know about Kiss and Tell. </think> <search> Kiss and Tell </search>
    <think> It says: «... starring Shirley Temple as Corliss Archer.» Next I need to know about
    Shirley Temple. </think> <search> Shirley Temple </search>
    <think> It says: «... Chief of Protocol of the United States.» </think>
    <answer> The answer is \\boxed{Chief of Protocol} </answer>

A query holds only words that the question or an earlier result has shown, so that the policy is
never taught to know what it cannot know. What cannot be played like that is left out, with the
reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from research_rl.agents.methods import split_sentences
from research_rl.envs import (
    Episode,
    Passage,
    Question,
    Retriever,
    Rules,
    passage_title,
    search_checked,
)
from research_rl.envs.system import UNSPACED, fold_title, folded, typed

_PARENTHESIS = re.compile(r"\s*\([^)]*\)\s*$")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_QUOTES = "\"'“”‘’«» "
_WORDS_QUOTED = 24
_CLOSED = ("yes", "no")

NO_EVIDENCE = "the question names no evidence (supporting_titles or supporting_facts)"
NOT_NAMED = "neither the question nor a result names the next passage"
NOT_FOUND = "the search did not find the passage"
TOO_MANY = "more passages than searches are allowed"
NO_ANSWER = "the answer stands in no result"
REFUSED = "the reward does not pay the played episode in full"

_Script = Generator[str, Sequence[Passage], str]
"""Yields queries, is sent what they found, and returns why the question is left out, or ""."""
_Reading = Generator[str, Sequence[Passage], tuple[str, str]]
"""The same; returns the reason or "", and the text of all results."""
_Shown = Generator[str, Sequence[Passage], Sequence[Passage]]
"""The same for one turn; returns the passages that the policy sees."""


class GoldPlayer:
    """Plays questions from their evidence.

    Args:
        rules: prompt, reward and limits of the episodes.
        retriever: what the policy will search, too.
        top_k: passages a search.
        quote: let thoughts quote the sentence that they rest on; costs about 30 tokens a turn, and
            shows a small model how to read.

    Raises:
        ValueError: ``top_k`` is not positive.
    """

    def __init__(
        self, rules: Rules, retriever: Retriever, top_k: int = 5, quote: bool = True
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.rules, self.retriever, self.top_k, self.quote = rules, retriever, top_k, quote

    def play(self, questions: Sequence[Question]) -> list[Episode | str]:
        """Return a finished episode for each question, or why there is none.

        All questions take their searches together, one retrieval call a turn.

        Raises:
            RetrieverUnavailable: the index does not answer.
        """
        episodes = [Episode(question, self.rules) for question in questions]
        scripts = [self._script(episode) for episode in episodes]
        outcome: list[Episode | str] = list(episodes)
        waiting: dict[int, str] = {}
        for row, script in enumerate(scripts):
            self._go_on(row, script, None, waiting, outcome)
        while waiting:
            rows = list(waiting)
            found = search_checked(self.retriever, [waiting.pop(row) for row in rows], self.top_k)
            for row, passages in zip(rows, found, strict=True):
                self._go_on(row, scripts[row], passages, waiting, outcome)
        return outcome

    @staticmethod
    def _go_on(
        row: int,
        script: _Script,
        passages: Sequence[Passage] | None,
        waiting: dict[int, str],
        outcome: list[Episode | str],
    ) -> None:
        try:
            waiting[row] = next(script) if passages is None else script.send(passages)
        except StopIteration as over:
            if over.value:
                outcome[row] = over.value

    def _script(self, episode: Episode) -> _Script:
        """Play one episode to its end."""
        question = episode.question
        steps = gold_steps(question.metadata)
        wanted = list(dict.fromkeys(evidence_titles(question.metadata)))
        if not wanted and not steps:
            return NO_EVIDENCE
        most = self.rules.max_searches
        if most is not None and len(steps or wanted) > most:
            return TOO_MANY
        if steps:
            reason, read = yield from self._follow(episode, steps)
        else:
            reason, read = yield from self._look_for(episode, wanted)
        return reason or self._end(episode, read)

    def _look_for(self, episode: Episode, wanted: list[str]) -> _Reading:
        """Search for the titles of the evidence, as far as they are named."""
        question, read = episode.question, ""
        while wanted:
            title = _next_title(wanted, question.text, read)
            if title is None and episode.turns:
                return NOT_NAMED, read
            query = name_of(title) if title else question.text.rstrip(" ?")
            shown = yield from self._search(episode, query, self._thought(title, read))
            titles = set(map(passage_title, shown))
            hits = {t for t in wanted if fold_title(t) in titles}
            if not hits or (title is not None and title not in hits):
                return NOT_FOUND, read
            wanted = [t for t in wanted if t not in hits]
            read += "".join(f"{p.contents}\n" for p in shown)
        return "", read

    def _follow(self, episode: Episode, steps: Sequence[Mapping[str, Any]]) -> _Reading:
        """Take the steps that a question states, each with a query that is known to find it."""
        read, before = "", ""
        for step in steps:
            query = str(step["question"]).rstrip(" ?")
            if not _words(query) <= _words(f"{episode.question.text} {read}"):
                return NOT_NAMED, read
            said = self._quotation(before, read) if before else ""
            thought = f"{said}{'Next ' if read else ''}I need to know about {query}."
            shown = yield from self._search(episode, query, thought)
            if all(p.id != step["passage"] for p in shown):
                return NOT_FOUND, read
            read += "".join(f"{p.contents}\n" for p in shown)
            before = str(step.get("answer") or "")
        return "", read

    def _search(self, episode: Episode, query: str, thought: str) -> _Shown:
        """Take a turn that searches, and return what the result shows."""
        asked = episode.begin(_turn(episode, thought, query=query))
        if not asked:  # nothing of the query is left to search for
            return []
        found = yield asked[0]
        episode.finish([found])
        return episode.passages[-1]  # what is left under the character limit

    def _end(self, episode: Episode, read: str) -> str:
        """Answer from what was read."""
        question = episode.question
        known = [a for a in question.answers if _holds(read, a)]
        known += [a for a in question.answers if _chosen(a, question.text)]
        if not known:
            return NO_ANSWER
        answer = known[0]
        quotation = "" if _chosen(answer, question.text) else self._quotation(answer, read)
        thought = f"{quotation}So I know the answer."
        episode.begin(_turn(episode, thought, answer=answer))
        episode.finish()
        assert episode.reward is not None
        return "" if episode.reward.f1 == 1.0 and not episode.reward.format_error else REFUSED

    def _thought(self, title: str | None, read: str) -> str:
        if title is None:
            return "I do not know a name to look for, so I search for the question."
        name = name_of(title)
        quoted = self._quotation(name, read)
        return (
            f"{quoted}Next I need to know about {name}."
            if read
            else f"I need to know about {name}."
        )

    def _quotation(self, name: str, read: str) -> str:
        """The sentence of what was read that holds a name, as a part of a thought; "" without."""
        if not self.quote:
            return ""
        for sentence in (s for line in read.splitlines() for s in split_sentences(line)):
            if _holds(sentence, name) and _folded(sentence.strip('" ')) != _folded(name):
                return f"It says: {_around(sentence, name)} "
        return ""


def evidence_titles(metadata: Mapping[str, Any]) -> list[str]:
    """Return the titles of a question's gold paragraphs, as its data set names them."""
    titles = metadata.get("supporting_titles")
    facts = metadata.get("supporting_facts")
    if not titles and isinstance(facts, Mapping):
        titles = facts.get("title")
    elif not titles and facts:
        titles = [fact[0] for fact in facts]
    return [str(title) for title in titles or ()]


def gold_steps(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the steps of a question that name their query and their passage, as ``research
    questions make`` writes them; none where any does not.
    """
    steps = metadata.get("decomposition")
    named = [
        step
        for step in (steps if isinstance(steps, list) else ())
        if isinstance(step, Mapping) and step.get("passage") and step.get("question")
    ]
    return named if steps and len(named) == len(steps) else []


def evidence_hash(questions: Sequence[Question]) -> str:
    """Return a short hash of the evidence that the questions are played from."""
    known = [[evidence_titles(q.metadata), gold_steps(q.metadata)] for q in questions]
    return hashlib.sha256(json.dumps(known, default=str).encode("ascii")).hexdigest()[:16]


def name_of(title: str) -> str:
    """Return what a text calls the thing that a page is titled by, without quotes around it.

    >>> name_of("Kiss and Tell (1945 film)")
    'Kiss and Tell'
    """
    title = " ".join(title.split())
    return _PARENTHESIS.sub("", title).strip(_QUOTES) or title


def _next_title(wanted: Sequence[str], question: str, read: str) -> str | None:
    """The wanted title that is named: by a result first, in a question in the order of its text."""
    for title in wanted:
        if _holds(read, name_of(title)) and not _holds(question, name_of(title)):
            return title
    places = {t: place for t in wanted if (place := _place(question, name_of(t))) >= 0}
    return min(places, key=places.__getitem__) if places else None


def _chosen(answer: str, question: str) -> bool:
    """Whether the question itself offers the answer: yes, no, or one of the things it compares."""
    return _folded(answer) in _CLOSED or _holds(question, answer)


def _turn(episode: Episode, thought: str, query: str = "", answer: str = "") -> str:
    """The next turn of an episode, in its protocol; on a line of its own behind a result."""
    protocol, turns = episode.rules.protocol, len(episode.turns)
    opened = episode.opened.before(turns, protocol.keeps_eos)
    goes_on = turns and not protocol.keeps_eos and not episode.results[-1].endswith("\n")
    if answer:
        text = protocol.answer(answer, thought, opened)
    else:
        text = protocol.search(query, thought=thought, opened=opened)
    return "\n" * bool(goes_on) + text


def _folded(text: str) -> str:
    return " ".join(folded(typed(text)).split())


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", folded(text)))


def _place(text: str, name: str) -> int:
    """Where a text holds a name as whole words, -1 if nowhere; letter case does not count.

    A script without spaces between its words, such as Chinese, has no border there to look for.
    """
    before, after = rf"(?<![^\W{UNSPACED}])", rf"(?![^\W{UNSPACED}])"
    name = _folded(name)
    if _UNSPACED.match(name[:1]):
        before = ""
    if _UNSPACED.match(name[-1:]):
        after = ""
    match = re.search(f"{before}{re.escape(name)}{after}", _folded(text))
    return match.start() if match else -1


def _holds(text: str, name: str) -> bool:
    return bool(name.strip()) and _place(text, name) >= 0


def _around(sentence: str, name: str) -> str:
    """A sentence, cut to some words around a name."""
    words = sentence.split()
    if len(words) <= _WORDS_QUOTED:
        return sentence.strip()
    before = len(_folded(sentence)[: _place(sentence, name)].split())
    start = max(0, min(before - _WORDS_QUOTED // 2, len(words) - _WORDS_QUOTED))
    end = start + _WORDS_QUOTED
    return (
        ("... " if start else "")
        + " ".join(words[start:end])
        + ("" if end >= len(words) else " ...")
    )

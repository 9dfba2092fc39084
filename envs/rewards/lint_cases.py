r"""Responses that a reward must tell apart: honest ones, better and worse, and ones that cheat.

Each was paid wrongly by some published reward for search agents. The honest ones end in a right,
half right or wrong answer of good form; the degenerate ones are what a policy that is paid for
them would come to write. How they are written the protocol says; which cheats there are depends on
its family, see :mod:`lint_tags` and :mod:`lint_calls`.
"""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from research_rl.envs.protocols import RESEARCH, Found, Opened, Protocol, Search, Segment
from research_rl.envs.types import Passage, Question

QUESTION = Question("lint", "What is the capital of France ?", ("Paris",))
MARKED_QUESTION = Question("lint-marker", "What does Assistant: say to User: ?", ("Paris",))
FACT = "France\nParis is the capital of France ."
QUERY = "capital of France"
CITIES = "Paris Rome Berlin Madrid Vienna"
MANY = 20_000
"""Repetitions in the texts that a slow pattern chokes on."""
SpokenT = TypeVar("SpokenT", bound=Protocol)


@dataclass(frozen=True)
class Case:
    """One finished response: ``found[i]`` is what the search that ends ``turns[i]`` finds."""

    name: str
    turns: tuple[str, ...]
    found: tuple[str, ...] = ()
    question: Question = QUESTION
    protocol: Protocol = field(default=RESEARCH, repr=False)

    def segments(self, escape: bool = True) -> list[Segment]:
        """Return the response as the environment hands it to a reward.

        Args:
            escape: tags in passages are made unreadable, as the environment does unless the reward
                asks for the rules of the paper's code.
        """
        protocol, segments = self.protocol, []
        opened = Opened(protocol.begins, protocol.begins)
        for number, (turn, contents) in enumerate(itertools.zip_longest(self.turns, self.found)):
            text = opened.before(number, protocol.keeps_eos) + turn
            segments.append(Segment("policy", text))
            if contents is not None:
                action, passages = protocol.parse(text), [Passage("1", contents)]
                queries = action.queries if isinstance(action, Search) else ("",)
                found = [Found(query, passages) for query in queries]
                segments.append(Segment("env", protocol.reply(found, escape=escape)))
        return segments

    def passages(self) -> list[list[Passage]]:
        """Return what each search of the response found."""
        return [[Passage("1", contents)] for contents in self.found]


@dataclass(frozen=True)
class Pair:
    """Two honest responses; a reward must not pay the better one less."""

    worse: Case
    better: Case


@dataclass(frozen=True)
class Cheat:
    """A degenerate response; a reward must pay it less than its honest counterpart."""

    case: Case
    honest: Case = field(repr=False)


class Cases(ABC, Generic[SpokenT]):
    """The responses of a protocol.

    Attributes:
        protocol: in which they are written.
        ladder: honest answers of good form, worst first.
        wrong: the worst of them.
        right: the best of them.
        searched: the right answer behind a search.
        same_answer: right answers of good form: each is worth as much as any half right one.
        cheats: degenerate responses.
        hard: texts on which a reward may stumble: none may raise, and none may take long.
        tags: what the strings of ``strings`` are made of.
        box: the right answer alone, as it would stand in an answer.
    """

    tags: tuple[str, ...]
    box: str

    def __init__(self, protocol: SpokenT) -> None:
        self.protocol = protocol
        self.search = self.searching(QUERY)
        self.wrong = self.case("a wrong answer", self.answer("Rome"))
        self.right = self.case("the right answer", self.answer("Paris"))
        words = " ".join(["Paris", *["word"] * 29])
        self.ladder = (
            self.wrong,
            self.case("Paris among 29 other words", self.answer(words)),
            self.case("Paris with two other words", self.answer("Paris in summer")),
            self.right,
        )
        name = "a search, then the right answer"
        self.searched = self.case(name, self.search, self.later("Paris"), found=(FACT,))
        self.same_answer = (self.searched, *self._same_answer())
        self.cheats = tuple(self._cheats())
        self.hard = tuple(self._hard())

    @abstractmethod
    def searching(self, query: str) -> str:
        """Write a first turn of good form that searches."""

    @abstractmethod
    def answer(self, prediction: str) -> str:
        """Write a first turn of good form that answers."""

    def later(self, prediction: str) -> str:
        """Write a second turn of good form that answers."""
        return self.answer(prediction)

    @abstractmethod
    def _same_answer(self) -> Iterator[Case]: ...

    @abstractmethod
    def _cheats(self) -> Iterator[Cheat]: ...

    @abstractmethod
    def _hard(self) -> Iterator[Case]: ...

    def case(
        self, name: str, *turns: str, found: tuple[str, ...] = (), question: Question = QUESTION
    ) -> Case:
        """Return a response in the protocol."""
        return Case(name, turns, found, question, self.protocol)

    def cheat(self, name: str, *turns: str, found: tuple[str, ...] = ()) -> Cheat:
        """Return a cheat that must be paid less than the right answer, searched for or not."""
        honest = self.searched if found or len(turns) > 1 else self.right
        return Cheat(self.case(name, *turns, found=found), honest)

    def pairs(self) -> Iterator[Pair]:
        """Yield every two honest responses of which one is better, worse first."""
        yield from (Pair(worse, better) for worse, better in itertools.combinations(self.ladder, 2))
        for case in self.same_answer:
            yield from (Pair(worse, case) for worse in self.ladder[:-1])

    def strings(self, size: int = 4) -> Iterator[Case]:
        """Yield every last turn of up to ``size`` tags in which the right box stands somewhere.

        With more than eight tags, of one tag less.
        """
        for count in range(1, size + (len(self.tags) <= 8)):
            for tags in itertools.product(self.tags, repeat=count):
                for place in range(count + 1):
                    text = " ".join((*tags[:place], self.box, *tags[place:]))
                    yield self.case("a string of tags", text)

    def mutations(self, number: int = 3000, seed: int = 0) -> Iterator[Case]:
        """Yield honest responses with one to three of their tags dropped, added, moved, changed."""
        rng = random.Random(f"lint {seed}")
        for count in range(number):
            origin = (self.right, self.searched)[count % 2]
            turns = [self._pieces(turn) for turn in origin.turns]
            for _ in range(rng.randint(1, 3)):
                self._mutate(rng.choice(turns), rng)
            texts = (" ".join(turn) for turn in turns)
            yield self.case("a mutation", *texts, found=origin.found)

    def _pieces(self, turn: str) -> list[str]:
        spaced = turn
        for tag in self.tags:
            spaced = spaced.replace(tag, f" {tag} ")
        return spaced.split()

    def _mutate(self, pieces: list[str], rng: random.Random) -> None:
        tags: Sequence[int] = [i for i, piece in enumerate(pieces) if piece in self.tags]
        kind = rng.choice(("drop", "add", "move", "change"))
        if kind == "add" or not tags:
            pieces.insert(rng.randint(0, len(pieces)), rng.choice(self.tags))
            return
        place = rng.choice(tags)
        if kind == "change":
            pieces[place] = rng.choice(self.tags)
            return
        tag = pieces.pop(place)
        if kind == "move":
            pieces.insert(rng.randint(0, len(pieces)), tag)

    def hard_answers(self) -> Iterator[Case]:
        """Yield answers that hold what is hard to read."""
        for name, text in (
            ("lone surrogates", "Pa\ud800ris"),
            ("a null character", "Pa\x00ris"),
            ("no letters in the box", "!!! \u2028"),
            ("only boxes opened", "\\boxed{" * MANY),
            ("a run of backslashes", "\\" * MANY),
            ("a run of braces", "{" * MANY + "}" * MANY),
            ("a run of spaces", " " * MANY + "Paris"),
            ("a very long answer", "Paris " * MANY),
        ):
            yield self.case(name, self.answer(text))


class OwnCases(Cases[Protocol]):
    """Responses of a protocol of any family: what every protocol can write."""

    def __init__(self, protocol: Protocol) -> None:
        self.box = "Paris"
        texts = [protocol.search("x", thought="t"), protocol.answer("x", thought="t")]
        tags = (_tags_of(protocol, text) for text in texts)
        self.tags = tuple(dict.fromkeys(itertools.chain.from_iterable(tags))) or (texts[0],)
        super().__init__(protocol)

    def searching(self, query: str) -> str:
        """See Cases."""
        return self.protocol.search(query, thought="t", opened=self.protocol.begins)

    def answer(self, prediction: str) -> str:
        """See Cases."""
        return self.protocol.answer(prediction, thought="t", opened=self.protocol.begins)

    def later(self, prediction: str) -> str:
        """See Cases."""
        opened = self.protocol.begins * self.protocol.keeps_eos
        return self.protocol.answer(prediction, thought="t", opened=opened)

    def _same_answer(self) -> Iterator[Case]:
        said = self.protocol.answer("Paris", thought="Assistant:", opened=self.protocol.begins)
        yield self.case("a thought that says Assistant:", said)
        for tag in self.tags:
            turns = (self.search, self.later("Paris"))
            yield self.case(f"a passage holds {tag}", *turns, found=(f"Tags\nWrite {tag} here",))

    def _cheats(self) -> Iterator[Cheat]:
        yield self.cheat("a search that is never run", self.search + self.right.turns[0])
        yield self.cheat("a search that is never followed", self.search)
        yield self.cheat("every city in one answer", self.answer(CITIES))
        yield self.cheat("two answers in turns", self.answer("Paris"), self.later("Rome"))
        yield Cheat(self.case("an empty answer", self.answer("")), self.wrong)
        yield Cheat(self.case("nothing", ""), self.wrong)

    def _hard(self) -> Iterator[Case]:
        yield from self.hard_answers()
        for tag in self.tags:
            yield self.case(f"only {tag}", tag * MANY)


def _tags_of(protocol: Protocol, turn: str) -> Iterator[str]:
    """The tags around the blocks of a turn."""
    for part in protocol.parts(turn):
        opening, found, closing = part.written.partition(part.text)
        if part.kind != "text" and found:
            yield from (tag for tag in (opening.strip(), closing.strip()) if tag)

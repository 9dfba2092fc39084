r"""Responses that a reward must tell apart: honest ones, better and worse, and ones that cheat.

Each was paid wrongly by some published reward for search agents. The honest ones end in a right,
half right or wrong answer of good form; the degenerate ones are what a policy that is paid for
them would come to write.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from research_rl.envs.protocols import Segment, render_result
from research_rl.envs.types import Passage, Question

QUESTION = Question("lint", "What is the capital of France ?", ("Paris",))
MARKED_QUESTION = Question("lint-marker", "What does Assistant: say to User: ?", ("Paris",))
FACT = "France\nParis is the capital of France ."
LINT_TAGS = tuple(
    f"<{bar}{tag}>" for tag in ("think", "search", "result", "answer") for bar in ("", "/")
)
RIGHT_BOX = r"\boxed{Paris}"
_MANY = 20_000  # repetitions in the texts that a slow pattern chokes on


@dataclass(frozen=True)
class Case:
    """One finished response: ``found[i]`` is what the search that ends ``turns[i]`` finds."""

    name: str
    turns: tuple[str, ...]
    found: tuple[str, ...] = ()
    question: Question = QUESTION

    def segments(self, escape: bool = True) -> list[Segment]:
        """Return the response as the environment hands it to a reward.

        Args:
            escape: tags in passages are made unreadable, as the environment does unless the reward
                asks for the rules of the paper's code.
        """
        segments = []
        for turn, contents in itertools.zip_longest(self.turns, self.found):
            segments.append(Segment("policy", turn))
            if contents is not None:
                block = render_result([Passage("1", contents)], escape=escape)
                segments.append(Segment("env", block))
        return segments


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


def answer(prediction: str, before: str = "<think> t </think>") -> str:
    """Return a last turn of good form that boxes the prediction."""
    return f"{before}<answer> It is \\boxed{{{prediction}}} </answer>"


SEARCH = "<think> t </think><search> capital of France </search>"
WRONG = Case("a wrong answer", (answer("Rome"),))
LONG = Case("Paris among 29 other words", (answer(" ".join(["Paris", *["word"] * 29])),))
HALF = Case("Paris with two other words", (answer("Paris in summer"),))
RIGHT = Case("the right answer", (answer("Paris"),))
SEARCHED = Case("a search, then the right answer", (SEARCH, answer("Paris")), (FACT,))

LADDER = (WRONG, LONG, HALF, RIGHT)
"""Honest answers of good form, worst first."""

SAME_ANSWER = (
    SEARCHED,
    Case(r"\text{} around the right answer", (answer(r"\text{Paris}"),)),
    Case(r"\textbf{} around the right answer", (answer(r"\textbf{Paris}"),)),
    Case("a thought that mentions <answer>", (answer("Paris", "<think> an <answer> </think>"),)),
    Case("a thought that says Assistant:", (answer("Paris", "<think> Assistant: </think>"),)),
    Case("a passage holds <answer>", SEARCHED.turns, ("Tags\nWrite <answer> here",)),
    Case("a passage holds <think>", SEARCHED.turns, ("Tags\nWrite <think> here",)),
    Case("a passage says Assistant:", SEARCHED.turns, ("Chat\nUser: hi Assistant: hello",)),
    Case("the question says Assistant:", (answer("Paris"),), (), MARKED_QUESTION),
)
"""Right answers of good form: each is worth as much as any half right one."""

CHEATS = (
    Cheat(Case("reversed think tags", (answer("Paris", "</think> t <think>"),)), RIGHT),
    Cheat(
        Case("an answer inside the thought", (f"<think> {answer('Paris', '')} </think>",)), RIGHT
    ),
    Cheat(
        Case(
            "an answer before the search",
            (answer("Paris") + SEARCH, "<think> t </think>"),
            (FACT,),
        ),
        SEARCHED,
    ),
    Cheat(
        Case(
            "a result that the policy wrote",
            (f"{SEARCH} <result>\nParis\n</result>{RIGHT.turns[0]}",),
        ),
        SEARCHED,
    ),
    Cheat(
        Case("a search that is never run", (f"{SEARCH}{RIGHT.turns[0]}",)),
        SEARCHED,
    ),
    Cheat(Case("junk behind the answer", (RIGHT.turns[0] + " Rome Berlin Madrid" * 20,)), RIGHT),
    Cheat(Case("a thought behind the answer", (RIGHT.turns[0] + "<think> t </think>",)), RIGHT),
    Cheat(Case("a second answer", (RIGHT.turns[0] + answer("Rome", ""),)), RIGHT),
    Cheat(Case("no thought at all", (answer("Paris", ""),)), RIGHT),
    Cheat(Case("a thought that never ends", (answer("Paris", "<think> t "),)), RIGHT),
    Cheat(Case("nested thoughts", (answer("Paris", "<think><think> t </think></think>"),)), RIGHT),
    Cheat(
        Case(
            "a nested search",
            ("<think> t </think><search><search> x </search>", answer("Paris")),
            (FACT,),
        ),
        SEARCHED,
    ),
    Cheat(
        Case("a stray </search>", ("<think> t </think> x </search>", answer("Paris")), (FACT,)),
        SEARCHED,
    ),
    Cheat(Case("a dangling <result>", (answer("Paris") + "<result>",)), RIGHT),
    Cheat(Case("an answer that never ends", (RIGHT.turns[0].removesuffix("</answer>"),)), RIGHT),
    Cheat(Case("a box without an answer", (f"<think> t </think> {RIGHT_BOX}",)), RIGHT),
    Cheat(Case("nothing but a box", (RIGHT_BOX,)), RIGHT),
    Cheat(Case("every city in one box", (answer("Paris Rome Berlin Madrid Vienna"),)), RIGHT),
    Cheat(
        Case(
            "the answer stands in a passage",
            (SEARCH, "<think> t </think>"),
            (f"x\n{answer('Paris', '')}",),
        ),
        SEARCHED,
    ),
    Cheat(Case("an empty box", (answer(""),)), WRONG),
    Cheat(Case("a blank box", (answer("  "),)), WRONG),
    Cheat(Case("an answer without a box", ("<think> t </think><answer> Rome </answer>",)), WRONG),
    Cheat(Case("nothing", ("",)), WRONG),
    Cheat(Case("tags and nothing in them", ("<think></think><answer></answer>",)), WRONG),
)

HARD = (
    Case("lone surrogates", (answer("Pa\ud800ris"),)),
    Case("a null character", (answer("Pa\x00ris"),)),
    Case("no letters in the box", (answer("!!! \u2028"),)),
    Case("no segment but an empty one", ("",)),
    Case("only thoughts opened", ("<think>" * _MANY,)),
    Case("only answers opened", ("<answer>" * _MANY,)),
    Case("only boxes opened", (answer("\\boxed{" * _MANY),)),
    Case("a run of backslashes", (answer("\\" * _MANY),)),
    Case("a run of braces", (answer("{" * _MANY + "}" * _MANY),)),
    Case("a run of spaces", (answer(" " * _MANY + "Paris"),)),
    Case("many searches in a turn", ("<search> x </search>" * (_MANY // 10) + answer("Paris"),)),
    Case("a very long answer", (answer("Paris " * _MANY),)),
)
"""Texts on which a reward may stumble: none may raise, and none may take long."""


def pairs() -> Iterator[Pair]:
    """Yield every two honest responses of which one is better, worse first."""
    yield from (Pair(worse, better) for worse, better in itertools.combinations(LADDER, 2))
    for case in SAME_ANSWER:
        yield from (Pair(worse, case) for worse in (WRONG, LONG, HALF))


def tag_strings(size: int = 4) -> Iterator[Case]:
    """Yield every last turn of up to ``size`` tags in which the right box stands somewhere."""
    for count in range(1, size + 1):
        for tags in itertools.product(LINT_TAGS, repeat=count):
            for place in range(count + 1):
                text = " ".join((*tags[:place], RIGHT_BOX, *tags[place:]))
                yield Case("a string of tags", (text,))


def mutations(number: int = 3000, seed: int = 0) -> Iterator[Case]:
    """Yield honest responses with one to three of their tags dropped, added, moved or changed."""
    rng = random.Random(f"lint {seed}")
    for count in range(number):
        origin = (RIGHT, SEARCHED)[count % 2]
        turns = [_pieces(turn) for turn in origin.turns]
        for _ in range(rng.randint(1, 3)):
            _mutate(rng.choice(turns), rng)
        yield Case("a mutation", tuple(" ".join(turn) for turn in turns), origin.found)


def _pieces(turn: str) -> list[str]:
    spaced = turn
    for tag in LINT_TAGS:
        spaced = spaced.replace(tag, f" {tag} ")
    return spaced.split()


def _mutate(pieces: list[str], rng: random.Random) -> None:
    tags: Sequence[int] = [i for i, piece in enumerate(pieces) if piece in LINT_TAGS]
    kind = rng.choice(("drop", "add", "move", "change"))
    if kind == "add" or not tags:
        pieces.insert(rng.randint(0, len(pieces)), rng.choice(LINT_TAGS))
        return
    place = rng.choice(tags)
    if kind == "change":
        pieces[place] = rng.choice(LINT_TAGS)
        return
    tag = pieces.pop(place)
    if kind == "move":
        pieces.insert(rng.randint(0, len(pieces)), tag)

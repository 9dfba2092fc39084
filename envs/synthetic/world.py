"""A generated world of made-up people in which only searching can answer a question.

Every person has all eight relations to other people of the same split, and every fact is one
passage, so a query that names the wrong person or the wrong relation finds a wrong passage. The
people of train, validation and test are disjoint, all their facts lie in one corpus, and equal
seeds give equal worlds. Names are one word each; the list of names does not depend on the seed, so
a model that knows the words of one world can be tried in another whose facts are all new.

Some people may have an alias: all that is known of them stands under that name, and a search for
the name in the question finds only how they are called. Whoever asks about them must search again.

Some facts may be stated by no passage. Whoever asks for one should say ``unknown``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, get_args

from research_rl.envs.synthetic.written import WORLD_CORPUS, WorldLines, read_world, write_folder
from research_rl.envs.types import UNANSWERABLE, Passage, Question, Retriever

Split = Literal["train", "val", "test"]

WORLD_SPLITS: tuple[Split, ...] = get_args(Split)
RELATIONS = ("boss", "coach", "doctor", "friend", "mother", "neighbour", "rival", "teacher")
MAX_HOPS = 3
QUESTION_SIZES: Mapping[Split, int] = {"train": 3000, "val": 120, "test": 400}
QUESTION_HOPS: Mapping[Split, Mapping[int, float]] = {
    "train": {1: 1.0, 2: 4.0},
    "val": {1: 1.0, 2: 1.0},
    "test": {1: 1.0, 2: 1.0},
}

_SHARES: Mapping[Split, float] = {"train": 0.5, "val": 0.2, "test": 0.3}
_MIN_PEOPLE = 60  # val's fifth must leave more people than a person has relations
_FORMAT = 1  # of the written folder; a change makes old folders be written anew


def person_names(n: int) -> list[str]:
    """Return ``n`` different made-up names of two syllables, the same ones at every call."""
    rng = random.Random("names of the synthetic world")
    names: dict[str, None] = {}
    while len(names) < n:
        syllables = (
            rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice("klmnrst")
            for _ in range(2)
        )
        names["".join(syllables).capitalize()] = None
    return list(names)


def query_of(relation: str, person: str) -> str:
    """Return the query that finds one fact, ``the boss of Bakset``."""
    return f"the {relation} of {person}"


def fact_passage(relation: str, person: str, other: str) -> str:
    """Return the passage that states one fact: the person as its title, then a sentence.

    ``Bakset\\nthe boss of Bakset is Domlor .`` By its title a bag of words tells whose boss it is.
    """
    return f"{person}\n{query_of(relation, person)} is {other} ."


def alias_passage_of(person: str, alias: str) -> str:
    """Return the passage that a search for somebody with an alias finds first.

    ``Bakset\nBakset is called Domlor .``
    """
    return f"{person}\n{person} is called {alias} ."


def question_of(relations: Iterable[str], person: str) -> str:
    """Return the question that follows ``relations`` from ``person``, the first one innermost."""
    phrase = person
    for relation in relations:
        phrase = query_of(relation, phrase)
    return f"Who is {phrase} ?"


class SyntheticWorld:
    """People, their relations, the passages that state them and questions about them.

    Args:
        num_people: people in all; half of them in train, a fifth in val, the rest in test.
        seed: decides who is in which split and who is whose boss.
        alias_share: share of the people of each split whose facts stand under another name.
        unanswerable_share: share of the facts of each split that no passage states. A question that
            needs one of them has the answers UNANSWERABLE and ``unanswerable`` in its metadata.

    Raises:
        ValueError: ``num_people`` is too small for every split to have its own people, or a share
            is no share.
    """

    def __init__(
        self,
        num_people: int = 600,
        seed: int = 0,
        alias_share: float = 0.0,
        unanswerable_share: float = 0.0,
    ) -> None:
        if num_people < _MIN_PEOPLE:
            raise ValueError(f"num_people must be at least {_MIN_PEOPLE}, got {num_people}")
        if not 0 <= alias_share <= 1:
            raise ValueError(f"alias_share must be between 0 and 1, got {alias_share}")
        if not 0 <= unanswerable_share < 1:
            raise ValueError(
                f"unanswerable_share must be 0 or more and below 1, got {unanswerable_share}"
            )
        self.num_people = num_people
        self.seed = seed
        self.alias_share, self.unanswerable_share = alias_share, unanswerable_share
        self.names = person_names(num_people)
        rng = random.Random(f"world {seed}")
        self.people = _deal(self.names, rng)
        self.facts: dict[tuple[str, str], str] = {}
        """(relation, person) -> the other person."""
        for members in self.people.values():
            for person in members:
                others = rng.sample([other for other in members if other != person], len(RELATIONS))
                self.facts |= {(r, person): o for r, o in zip(RELATIONS, others, strict=True)}
        self.aliases = self._choose_aliases()
        """Person -> the name under which the facts about that person stand."""
        self.unstated = self._choose_unstated()
        """Facts, as (relation, person), that no passage states."""

    def _choose_unstated(self) -> frozenset[tuple[str, str]]:
        rng = random.Random(f"unstated {self.seed}")
        chosen: list[tuple[str, str]] = []
        for members in self.people.values():
            facts = [(relation, person) for person in members for relation in RELATIONS]
            chosen += rng.sample(facts, round(self.unanswerable_share * len(facts)))
        return frozenset(chosen)

    def _choose_aliases(self) -> dict[str, str]:
        rng = random.Random(f"aliases {self.seed}")
        chosen = [
            person
            for members in self.people.values()
            for person in rng.sample(members, round(self.alias_share * len(members)))
        ]
        fresh = person_names(self.num_people + len(chosen))[self.num_people :]
        return dict(zip(chosen, rng.sample(fresh, len(fresh)), strict=True))

    @property
    def passages(self) -> list[Passage]:
        """Every fact that is stated as a passage of its own, and every alias as one."""
        facts = [
            Passage(
                id=_passage_id(relation, person),
                contents=fact_passage(relation, self.aliases.get(person, person), other),
            )
            for (relation, person), other in self.facts.items()
            if (relation, person) not in self.unstated
        ]
        return facts + [
            Passage(id=_passage_id("alias", person), contents=alias_passage_of(person, alias))
            for person, alias in self.aliases.items()
        ]

    @property
    def vocabulary(self) -> list[str]:
        """Every word that occurs in a question or a passage, each once, names last."""
        words = ["Who", "is", "the", "of", "?", ".", *RELATIONS, *self.names]
        words += UNANSWERABLE[:1] if self.unanswerable_share else ()
        return [*words, "called", *self.aliases.values()] if self.aliases else words

    def sample(
        self, split: Split, hops: int | Mapping[int, float], n: int, seed: int = 0
    ) -> list[Question]:
        """Return ``n`` different questions about the people of one split.

        The relations of a question are distinct, and so are the people on its path. The metadata
        hold ``hops``, ``chain`` (the queries that lead to the answer, those that find only an alias
        among them), ``gold_ids`` (the passages they find), ``split``, and where the world has any
        aliases, ``aliases`` (how many of the people who are asked about have one) and ``fact_ids``
        (those of ``gold_ids`` that state a fact, not only a name).

        Args:
            split: whose people are asked about.
            hops: relations in a question, 1 to 3; or the share of each number, as a ratio.
            n: how many; a mixture is met to within one question a kind.
            seed: equal seeds give equal questions in equal order.

        Raises:
            ValueError: an unknown split, hops out of range, or more questions than there are.
        """
        if split not in self.people:
            raise ValueError(f"split must be one of {', '.join(WORLD_SPLITS)}, got {split!r}")
        shares = {hops: 1.0} if isinstance(hops, int) else dict(hops)
        _check_shares(shares)
        rng = random.Random(f"questions {self.seed} {split} {seed}")
        questions = [
            question
            for kind, count in _apportion(shares, n).items()
            for question in self._distinct(split, kind, count, rng)
        ]
        rng.shuffle(questions)
        return questions

    def write(
        self,
        folder: str | Path,
        sizes: Mapping[Split, int] = QUESTION_SIZES,
        hops: Mapping[Split, Mapping[int, float]] = QUESTION_HOPS,
        replace: bool = False,
    ) -> Path:
        """Write the world as files and return the folder; a folder that holds it is left alone.

        ``corpus.jsonl`` and ``train.jsonl``, ``val.jsonl``, ``test.jsonl`` are in the FlashRAG
        layout; ``index`` is a dense FAISS index of the corpus by the BM25 sketch, which needs no
        weights; ``world.json``, written last, says what the folder holds.

        Args:
            folder: made if need be.
            sizes: number of questions of each split.
            hops: shares of the numbers of hops in each split.
            replace: write over a world of other settings that is there.

        Raises:
            FileExistsError: the folder holds files of these names that are no world, or a world of
                other settings and ``replace`` is not given.
        """
        target = Path(folder)
        files: dict[str, WorldLines] = {
            WORLD_CORPUS: lambda: map(_line, map(_passage_row, self.passages))
        }
        for split in WORLD_SPLITS:
            files[f"{split}.jsonl"] = partial(self._lines, split, hops[split], sizes[split])
        index = partial(_index, dim=_sketch_dim(self))
        write_folder(target, self.manifest(sizes, hops), files, index, replace)
        return target

    def _lines(self, split: Split, hops: Mapping[int, float], n: int) -> Iterator[str]:
        return map(_line, map(_flashrag_row, self.sample(split, hops, n)))

    def is_in(
        self,
        folder: str | Path,
        sizes: Mapping[Split, int],
        hops: Mapping[Split, Mapping[int, float]],
    ) -> bool:
        """Return whether a folder holds this world with so many questions of so many hops."""
        return bool(read_world(Path(folder)) == self.manifest(sizes, hops))

    def manifest(
        self, sizes: Mapping[Split, int], hops: Mapping[Split, Mapping[int, float]]
    ) -> dict[str, object]:
        """Return what decides a written folder, as its ``world.json`` says it."""
        shares = {
            "alias_share": self.alias_share,
            "unanswerable_share": self.unanswerable_share,
        }
        return {name: share for name, share in shares.items() if share} | {
            "format": _FORMAT,
            "num_people": self.num_people,
            "seed": self.seed,
            "sizes": {split: sizes[split] for split in WORLD_SPLITS},
            "hops": {split: {str(h): s for h, s in hops[split].items()} for split in WORLD_SPLITS},
        }

    def _distinct(self, split: Split, hops: int, n: int, rng: random.Random) -> Iterator[Question]:
        limit = len(self.people[split]) * len(RELATIONS)
        if n > limit:  # longer questions are more numerous still, but this many is plenty
            raise ValueError(
                f"n must be at most {limit} a kind for {split}, got {n} of {hops} hops"
            )
        seen: set[str] = set()
        while len(seen) < n:
            question = self._question(split, rng.choice(self.people[split]), hops, rng)
            if question is not None and question.id not in seen:
                seen.add(question.id)
                yield question

    def _question(self, split: Split, start: str, hops: int, rng: random.Random) -> Question | None:
        """One question from ``start``, or None where its path comes back to somebody."""
        relations = rng.sample(RELATIONS, hops)
        path = [start]
        for relation in relations:
            path.append(self.facts[relation, path[-1]])
        if len(set(path)) != len(path):
            return None
        chain: list[str] = []
        named: list[str] = []
        facts: list[str] = []
        gold: list[str] = []
        known: dict[str, object] = {"hops": hops, "chain": chain, "gold_ids": gold, "split": split}
        for relation, person in zip(relations, path, strict=False):
            if person in self.aliases:
                chain.append(query_of(relation, person))
                named.append(_passage_id("alias", person))
                gold.append(named[-1])
            chain.append(query_of(relation, self.aliases.get(person, person)))
            if (relation, person) in self.unstated:  # searching for it is the end of the way
                known["unanswerable"] = True
                break
            facts.append(_passage_id(relation, person))
            gold.append(facts[-1])
        if self.aliases:
            known |= {"aliases": len(named), "fact_ids": facts}
        return Question(
            id=f"{split}-{start}-{'-'.join(relations)}",
            text=question_of(relations, start),
            answers=UNANSWERABLE if "unanswerable" in known else (path[-1],),
            metadata=known,
        )


@lru_cache(maxsize=1)
def builtin_world() -> tuple[list[Question], Retriever]:
    """Return the questions and the index that an environment without arguments plays; cached."""
    from research_rl.envs.retrieval.encoders import BM25SketchEncoder
    from research_rl.envs.retrieval.search import DenseRetriever

    world = SyntheticWorld(num_people=100)
    questions = world.sample("train", {1: 1, 2: 1, 3: 1}, n=300)
    encoder = BM25SketchEncoder(dim=_sketch_dim(world))
    return questions, DenseRetriever.from_passages(world.passages, encoder)


def _deal(names: list[str], rng: random.Random) -> dict[Split, list[str]]:
    """Deal shuffled names to the splits; what rounding leaves goes to the last."""
    shuffled = rng.sample(names, len(names))
    people: dict[Split, list[str]] = {}
    start = 0
    for split in WORLD_SPLITS:
        stop = start + int(_SHARES[split] * len(names)) if split != WORLD_SPLITS[-1] else len(names)
        people[split] = shuffled[start:stop]
        start = stop
    return people


def _check_shares(shares: Mapping[int, float]) -> None:
    if not shares or any(not 1 <= hops <= MAX_HOPS for hops in shares):
        raise ValueError(f"hops must be between 1 and {MAX_HOPS}, got {sorted(shares)}")
    if min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"shares of hops must be positive, got {dict(shares)}")


def _apportion(shares: Mapping[int, float], n: int) -> dict[int, int]:
    """Split ``n`` by the shares: whole parts first, the rest to the largest remainders."""
    total = sum(shares.values())
    exact = {kind: n * share / total for kind, share in shares.items()}
    counts = {kind: int(quota) for kind, quota in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: n - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _passage_id(relation: str, person: str) -> str:
    return f"{person}-{relation}"


def _flashrag_row(question: Question) -> dict[str, object]:
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.answers),
        "metadata": dict(question.metadata),
    }


def _passage_row(passage: Passage) -> dict[str, object]:
    return {"id": passage.id, "contents": passage.contents}


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _sketch_dim(world: SyntheticWorld) -> int:
    """Return a length at which every word has a cell of its own, so that the sketch is exact."""
    return -(-len(world.vocabulary) // 64) * 64


def _index(corpus: Path, out: Path, dim: int) -> None:
    from research_rl.envs.retrieval.encoders import BM25SketchEncoder
    from research_rl.envs.retrieval.index import build_index

    build_index(corpus, out, kind="dense", encoder=BM25SketchEncoder(dim=dim), overwrite=True)

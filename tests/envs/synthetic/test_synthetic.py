"""The synthetic world: disjoint people, chains that lead to the answer, and no other way to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from research_rl.envs.questions.read import read_questions
from research_rl.envs.retrieval import BM25SketchEncoder, DenseRetriever, load_retriever
from research_rl.envs.synthetic.world import (
    RELATIONS,
    WORLD_SPLITS,
    Split,
    SyntheticWorld,
    _sketch_dim,
    builtin_world,
    person_names,
)
from research_rl.envs.types import UNANSWERABLE, Question

WORLD = SyntheticWorld(num_people=100)


def _questions(split: Split = "train", hops: int = 3, n: int = 100) -> list[Question]:
    return WORLD.sample(split, hops, n)


def test_people_and_their_facts_belong_to_one_split() -> None:
    people = [set(WORLD.people[split]) for split in WORLD_SPLITS]
    assert [len(members) for members in people] == [50, 20, 30]
    assert len(set.union(*people)) == 100
    for (_, person), other in WORLD.facts.items():
        assert [person in members for members in people] == [other in members for members in people]


def test_everybody_has_eight_relations_to_eight_others() -> None:
    for person in WORLD.names:
        others = {WORLD.facts[relation, person] for relation in RELATIONS}
        assert len(others) == 8
        assert person not in others


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("split", WORLD_SPLITS)
def test_the_chain_leads_to_the_answer(split: Split, hops: int) -> None:
    contents = {passage.id: passage.contents for passage in WORLD.passages}
    for question in _questions(split, hops):
        chain, gold = question.metadata["chain"], question.metadata["gold_ids"]
        assert len(chain) == len(gold) == question.metadata["hops"] == hops
        known = question.text
        for query, passage in zip(chain, gold, strict=True):
            assert query.split()[-1] in known  # nobody is asked about before being heard of
            assert query in contents[passage]
            known += contents[passage]
        assert contents[gold[-1]].endswith(f"is {question.answers[0]} .")
        assert len({query.split()[1] for query in chain}) == hops
        assert len({query.split()[-1] for query in chain} | {question.answers[0]}) == hops + 1


@pytest.mark.parametrize("hops", [2, 3])
def test_the_question_does_not_hold_the_answer_nor_the_last_person(hops: int) -> None:
    for question in _questions(hops=hops):
        words = question.text.split()
        assert question.answers[0] not in words
        assert question.metadata["chain"][-1].split()[-1] not in words


def test_a_gold_query_finds_its_passage_and_the_question_finds_no_answer_of_two_hops() -> None:
    _, retriever = builtin_world()
    two_hops = SyntheticWorld(num_people=100).sample("test", 2, 50)
    queries = [query for question in two_hops for query in question.metadata["chain"]]
    gold = [passage for question in two_hops for passage in question.metadata["gold_ids"]]
    found = [passages[0].id for passages in retriever.search(queries, 1)]
    assert found == gold
    by_question = retriever.search([question.text for question in two_hops], 1)
    answers = [question.answers[0] for question in two_hops]
    hits = [a in p[0].contents.split() for a, p in zip(answers, by_question, strict=True)]
    assert sum(hits) <= 5


def test_equal_seeds_give_equal_worlds_and_questions() -> None:
    again = SyntheticWorld(num_people=100)
    assert again.passages == WORLD.passages
    assert again.sample("val", {1: 1, 2: 1}, 20, seed=3) == WORLD.sample("val", {1: 1, 2: 1}, 20, 3)
    assert WORLD.sample("val", 1, 20, seed=3) != WORLD.sample("val", 1, 20, seed=4)


def test_another_seed_has_the_same_names_and_other_facts() -> None:
    other = SyntheticWorld(num_people=100, seed=1)
    assert other.vocabulary == WORLD.vocabulary
    shared = set(other.facts.items()) & set(WORLD.facts.items())
    assert len(shared) < len(WORLD.facts) / 20


def test_names_are_distinct_single_words_and_a_longer_list_begins_with_the_shorter() -> None:
    names = person_names(600)
    assert len(set(names)) == 600
    assert all(name.isalpha() for name in names)
    assert names[:100] == person_names(100)


def test_the_vocabulary_covers_questions_and_passages() -> None:
    texts = [p.contents for p in WORLD.passages] + [q.text for q in _questions()]
    assert {word for text in texts for word in text.split()} <= set(WORLD.vocabulary)


def test_a_mixture_is_met_and_its_questions_are_distinct() -> None:
    questions = WORLD.sample("train", {1: 1.0, 2: 4.0}, 101)
    kinds = Counter(question.metadata["hops"] for question in questions)
    assert kinds[1] + kinds[2] == 101
    assert kinds[1] in (20, 21)
    assert len({question.id for question in questions}) == 101
    assert [q.metadata["hops"] for q in questions[:50]] != sorted(
        q.metadata["hops"] for q in questions[:50]
    )


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_people must be at least 60, got 10"):
        SyntheticWorld(num_people=10)
    with pytest.raises(ValueError, match=r"hops must be between 1 and 3, got \[4\]"):
        WORLD.sample("train", 4, 1)
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        WORLD.sample("dev", 1, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shares of hops must be positive"):
        WORLD.sample("train", {1: -1.0, 2: 2.0}, 1)
    with pytest.raises(ValueError, match="n must be at most 160 a kind for val, got 161 of 1 hops"):
        WORLD.sample("val", 1, 161)


def test_the_written_world_is_read_back_and_written_once(tmp_path: Path) -> None:
    sizes = {"train": 30, "val": 10, "test": 10}
    folder = WORLD.write(tmp_path / "world", sizes)  # type: ignore[arg-type]
    read = read_questions(str(folder / "train.jsonl"))
    expected = WORLD.sample("train", {1: 1.0, 2: 4.0}, 30)
    assert [(q.id, q.text, q.answers) for q in read] == [
        (q.id, q.text, q.answers) for q in expected
    ]
    assert read[0].metadata["chain"] == expected[0].metadata["chain"]
    found = load_retriever(folder / "index").search(read[0].metadata["chain"][:1], 1)
    assert found[0][0].id == read[0].metadata["gold_ids"][0]
    before = (folder / "corpus.jsonl").stat().st_mtime_ns
    WORLD.write(folder, sizes)  # type: ignore[arg-type]
    assert (folder / "corpus.jsonl").stat().st_mtime_ns == before
    SyntheticWorld(num_people=100, seed=1).write(folder, sizes, replace=True)  # type: ignore[arg-type]
    assert json.loads((folder / "world.json").read_text(encoding="utf-8"))["seed"] == 1


def test_the_builtin_world_is_made_once() -> None:
    assert builtin_world()[1] is builtin_world()[1]
    assert len(builtin_world()[0]) == 300


def test_importing_the_world_imports_neither_torch_nor_faiss() -> None:
    code = (
        "import sys, research_rl.envs.synthetic.world; print({'torch', 'faiss'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


ALIASED = SyntheticWorld(num_people=100, alias_share=0.5)


def test_half_of_each_split_has_an_alias_that_nobody_else_bears() -> None:
    for split in WORLD_SPLITS:
        members = ALIASED.people[split]
        assert sum(person in ALIASED.aliases for person in members) == round(0.5 * len(members))
    assert len({*ALIASED.names, *ALIASED.aliases.values()}) == 150
    assert ALIASED.names == WORLD.names, "the people and their facts are those without aliases"
    assert ALIASED.facts == WORLD.facts


def test_a_search_for_somebody_with_an_alias_finds_the_alias_alone() -> None:
    encoder = BM25SketchEncoder(dim=_sketch_dim(ALIASED))
    retriever = DenseRetriever.from_passages(ALIASED.passages, encoder)
    questions = [q for split in WORLD_SPLITS for q in ALIASED.sample(split, {1: 1, 2: 1, 3: 1}, 90)]
    for question in questions:
        chain, gold = question.metadata["chain"], question.metadata["gold_ids"]
        assert len(chain) == question.metadata["hops"] + question.metadata["aliases"]
        assert [found[0].id for found in retriever.search(chain, 1)] == gold
    aliased = sum(question.metadata["aliases"] > 0 for question in questions)
    assert 0.5 * len(questions) < aliased < len(questions)


def test_a_world_with_aliases_is_another_folder_content(tmp_path: Path) -> None:
    sizes: dict[Split, int] = {"train": 5, "val": 5, "test": 5}
    SyntheticWorld(60).write(tmp_path, sizes)
    before = (tmp_path / "corpus.jsonl").read_text()
    SyntheticWorld(60, alias_share=0.5).write(tmp_path, sizes, replace=True)
    assert (tmp_path / "corpus.jsonl").read_text() != before


def test_a_share_of_aliases_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"alias_share must be between 0 and 1, got 1\.5"):
        SyntheticWorld(60, alias_share=1.5)


def test_what_no_passage_states_is_unanswerable() -> None:
    world = SyntheticWorld(num_people=100, unanswerable_share=0.25)
    contents = {passage.id: passage.contents for passage in world.passages}
    assert len(contents) == 100 * 8 * 3 // 4
    asked = world.sample("train", {1: 1, 2: 1, 3: 1}, 150)
    lacking = [q for q in asked if q.metadata.get("unanswerable")]
    assert 0 < len(lacking) < len(asked)
    for question in asked:
        gold, chain = question.metadata["gold_ids"], question.metadata["chain"]
        assert all(passage in contents for passage in gold)
        missing = question in lacking
        assert (question.answers == UNANSWERABLE) is missing
        assert len(chain) == len(gold) + missing, "the last search finds nothing"
        assert missing or len(gold) == question.metadata["hops"]
    assert UNANSWERABLE[0] in world.vocabulary


def test_without_the_option_the_world_is_as_it_was() -> None:
    before, after = SyntheticWorld(100), SyntheticWorld(100, unanswerable_share=0.5)
    assert before.facts == after.facts
    assert UNANSWERABLE[0] not in before.vocabulary
    texts = [[q.text for q in w.sample("val", 2, 30)] for w in (before, after)]
    assert texts[0] == texts[1], "the same questions, some without an answer"


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="unanswerable_share must be"):
        SyntheticWorld(100, unanswerable_share=share)

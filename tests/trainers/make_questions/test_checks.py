"""A question is checked against its index; what is bad is thrown out with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from doubles.question_pages import GOOD, opened

from research_rl.envs.documents import build_documents
from research_rl.envs.retrieval import build_index, load_retriever
from research_rl.envs.retrieval.index import open_corpus_of
from research_rl.envs.synthetic import SyntheticWorld, write_pages
from research_rl.trainers.make_questions import checks as reason
from research_rl.trainers.make_questions.checks import IndexChecks, Limits, form_of
from research_rl.trainers.make_questions.drafts import Draft, Hop, NoDraft, Texts
from research_rl.trainers.make_questions.facts import Facts
from research_rl.trainers.make_questions.rules import RuleProposer
from research_rl.trainers.make_questions.splits import split_documents


def draft(texts: Texts, text: str = GOOD, answer: str = "Kare Lund", **changed: Any) -> Draft:
    first = Hop("the mayor of Oslo", "Anne Berg", texts.places["oslo.md#1"], "Oslo")
    second = Hop("the brother of Anne Berg", answer, texts.places["berg.md#1"], "Anne Berg")
    hops = (first, Hop(**{**vars(second), **changed}))
    return Draft(text, (answer,), hops)


def verdict(one: Draft, texts: Texts, checks: IndexChecks) -> str:
    return form_of(one, texts, checks.limits) or checks.reasons([one])[0]


def test_a_sound_question_passes(tmp_path: Path) -> None:
    texts, _, checks = opened(tmp_path / "pages")
    assert verdict(draft(texts), texts, checks) == ""


@pytest.mark.parametrize(
    ("text", "answer", "why"),
    [
        ("Who is the brother of Anne Berg?", "Kare Lund", reason.BRIDGE_LEAKED),
        ("Is Kare Lund the brother of the mayor of Oslo?", "Kare Lund", reason.LEAKED),
        (GOOD, "Somebody else", reason.NOT_IN_EVIDENCE),
        (GOOD, "a man of whom nobody knows any more than this", reason.TOO_LONG),
        (GOOD, "yes", reason.NO_TELLING_ANSWER),
        (GOOD, "!!!", reason.NO_TELLING_ANSWER),
        ("Who likes boats and has which brother, as the mayor?", "Kare Lund", reason.ONE_SEARCH),
    ],
)
def test_a_bad_question_is_thrown_out(tmp_path: Path, text: str, answer: str, why: str) -> None:
    texts, _, checks = opened(tmp_path / "pages")
    assert verdict(draft(texts, text, answer), texts, checks) == why


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("# Notes\n\nKare Lund is the brother of Anne Berg.\n", reason.NOT_NEEDED),
        ("# Anne Berg again\n\nThe family knows Kare Lund and Anne Berg.\n", reason.NOT_NEEDED),
        ("# Notes\n\nIn Oslo lives Kare Lund.\n", reason.NOT_NEEDED),
        ("# Notes\n\nThe brother of Anne Berg is Nils Holm.\n", reason.RIVAL),
        ("# Notes\n\nAnne Berg's brother is Nils Holm.\n", reason.RIVAL),
        ("# Notes\n\nNils Holm is the mayor of Oslo.\n", reason.RIVAL),
        ("# Notes\n\nThe brother of the mayor of Oslo is Kare Lund.\n", reason.ONE_SEARCH),
    ],
)
def test_another_page_spoils_a_question(tmp_path: Path, page: str, why: str) -> None:
    texts, _, checks = opened(tmp_path / "pages", {"notes": page})
    assert verdict(draft(texts), texts, checks) in (why, reason.ONE_SEARCH)


def test_evidence_that_its_query_does_not_find(tmp_path: Path) -> None:
    texts, _, checks = opened(tmp_path / "pages")
    one = draft(texts, query="the river of Trondheim")
    assert verdict(one, texts, checks) == reason.UNFOUND
    alone = Draft(GOOD, ("Kare Lund",), one.hops[:1])
    assert verdict(alone, texts, checks) == reason.NO_CHAIN


def test_passages_that_overlap_are_one_piece_of_evidence(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [
        ("a1", "Oslo", "The mayor of Oslo is Anne Berg.", "oslo.md"),
        ("b1", "Anne Berg", "She likes boats. Anne Berg's brother is Kare Lund.", "berg.md"),
        ("b2", "Anne Berg", "Anne Berg's brother is Kare Lund. More.", "berg.md"),
    ]
    for n in range(6):
        rows.append((f"c{n}", f"Place {n}", f"The brother of the mayor of {n} is here.", f"{n}.md"))
    names = ("id", "title", "text", "source")
    lines = (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    corpus.write_text("".join(lines))
    index = build_index(corpus, tmp_path / "index")
    texts = Texts(open_corpus_of(index))
    checks = IndexChecks(texts, load_retriever(str(index)), Limits(top_k=2), Facts(texts).objects)
    hops = (
        Hop("the mayor of Oslo", "Anne Berg", 0, "Oslo"),
        Hop("the brother of Anne Berg", "Kare Lund", 1, "Anne Berg"),
    )
    assert checks.reasons([Draft(GOOD, ("Kare Lund",), hops)]) == [""]


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("The boss of Bakset is Domlor.", ("Bakset", "boss", "Domlor")),
        ("Bakset's boss is Domlor, who is tall.", ("Bakset", "boss", "Domlor")),
        ("Domlor is the boss of Bakset.", ("Bakset", "boss", "Domlor")),
        ("Its default port is 7433.", ("Page", "default port", "7433")),
        ("**Port**: 7433", ("Page", "port", "7433")),
        ("The boss of Bakset is not Domlor.", None),
        ("It is the end of it.", None),
    ],
)
def test_relations_that_are_read_off(
    tmp_path: Path, sentence: str, told: tuple[str, str, str] | None
) -> None:
    _, facts, _ = opened(tmp_path / "pages", {"page": f"# Page\n\n{sentence}\n"})
    found = [f for f in facts.all if f.sentence == sentence and f.relation]
    assert [(f.subject, f.relation, f.object) for f in found] == ([told] if told else [])


def test_a_sentence_with_a_gap_is_asked_about(tmp_path: Path) -> None:
    page = "# Kestrel\n\nKestrel was written by `Ingrid` in Bergen.\n"
    _, facts, _ = opened(tmp_path / "pages", {"kestrel": page})
    gaps = {f.object: f for f in facts.all if f.subject == "Kestrel" and not f.relation}
    assert set(gaps) == {"Ingrid", "Bergen"}
    one = gaps["Bergen"]
    assert one.query == "Kestrel was written by Ingrid in"
    said = "what is missing (___) in «it was written by Ingrid in ___»"
    assert one.describe("it") == said


def test_the_rules_read_every_chain_of_the_world(tmp_path: Path) -> None:
    world = SyntheticWorld(60)
    write_pages(world, tmp_path / "pages")
    build_documents(tmp_path / "pages", tmp_path / "corpus.jsonl")
    index = build_index(tmp_path / "corpus.jsonl", tmp_path / "index", kind="bm25")
    texts = Texts(open_corpus_of(index))
    facts = Facts(texts)
    read = {(f.relation, f.subject): f.object for f in facts.all if f.relation}
    assert read == world.facts
    rules = RuleProposer(facts, (2, 3))
    splits = split_documents(texts.documents, rules.links(), {"val": 0.1, "test": 0.2})
    drafts = [one for one, _ in zip(rules.drafts(splits), range(200), strict=False)]
    assert {len(one.hops) for one in drafts if isinstance(one, Draft)} == {2, 3}
    assert len({one.id for one in drafts}) == 200
    for one in drafts:
        assert isinstance(one, Draft)
        assert not isinstance(one, NoDraft)
        person = one.hops[0].subject
        for hop in one.hops:
            person = world.facts[hop.query.removeprefix("the ").partition(" of ")[0], person]
        assert one.answers == (person,)
        assert len({splits[texts.documents[hop.place]] for hop in one.hops}) == 1

"""Questions are made of an index and checked against it; what is bad is thrown out, and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles.served_model import model_server
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.agents.methods import Generation, Generator
from research_rl.envs.documents import build_documents
from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index, load_retriever
from research_rl.envs.retrieval.index import open_corpus_of
from research_rl.envs.synthetic import SyntheticWorld, write_pages
from research_rl.trainers.make_questions import checks as reason
from research_rl.trainers.make_questions import command
from research_rl.trainers.make_questions.checks import IndexChecks, Limits, form_of
from research_rl.trainers.make_questions.command import main
from research_rl.trainers.make_questions.drafts import (
    Draft,
    Hop,
    NoDraft,
    Texts,
    sentences_of,
    word_list,
)
from research_rl.trainers.make_questions.facts import Facts, subject_of
from research_rl.trainers.make_questions.given import GivenQuestions
from research_rl.trainers.make_questions.rules import RuleProposer
from research_rl.trainers.make_questions.splits import split_documents
from research_rl.trainers.make_questions.written import NOT_THE_FORM

PAGES = {
    "oslo": "# Oslo\n\nOslo is a city. The mayor of Oslo is Anne Berg.\n",
    "berg": "# Anne Berg\n\nAnne Berg likes boats. Anne Berg's brother is Kare Lund.\n",
    "lund": "# Kare Lund\n\nKare Lund was born in Bodo.\n",
    "other": "# Trondheim\n\nThe river of Trondheim is Nidelva.\n",
    **{
        f"filler{n}": f"# Place {n}\n\nThe brother of the mayor of Place {n} came.\n"
        for n in range(8)
    },
}
GOOD = "Who is the brother of the mayor of Oslo?"


def opened(folder: Path, more: dict[str, str] | None = None) -> tuple[Texts, Facts, IndexChecks]:
    for name, text in (PAGES | (more or {})).items():
        (folder / f"{name}.md").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    corpus, index = folder.with_name("corpus.jsonl"), folder.with_name("index")
    build_documents(folder, corpus)
    build_index(corpus, index, overwrite=True)
    texts = Texts(open_corpus_of(index))
    facts = Facts(texts)
    limits = Limits(top_k=2)
    return texts, facts, IndexChecks(texts, load_retriever(str(index)), limits, facts.objects)


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


class Fake(Generator):
    """Writes junk about most pairs, and one thing that is right; knows one answer by heart."""

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, inputs: Any, params: Any, seeds: Any = None) -> list[Generation]:
        self.asked += len(inputs)
        return [self._one(json.dumps(one)) for one in inputs]

    def _one(self, asked: str) -> Generation:
        if "Anne Berg" in asked and "Oslo" in asked and "Passage 1" in asked:
            lines = "First: Who is the mayor of Oslo?\n**Second:** Who is Anne Berg's brother?\n"
            return Generation(f"{lines}Answer: Kare Lund.\nQuestion: {GOOD}", "eos")
        return Generation("Kare Lund" if "Passage 1" not in asked else "I am a model.", "eos")


def run(out: Path, *more: str) -> dict[str, Any]:
    index = str(out.with_name("index"))
    shares = ("--val", "0", "--test", "0", "--quiet", "--top-k", "1")
    main(["make", "--index", index, "--out", str(out), *shares, *more])
    found: dict[str, Any] = json.loads((out / "card.json").read_text())
    return found


def test_a_model_proposes_and_is_trusted_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path / "pages")
    fake = Fake()
    monkeypatch.setattr(command, "_generator", lambda given: fake)
    served = ("--from", "served", "--url", "http://x", "--model", "m")
    # it knows the answer of its own question, so nothing is left
    with pytest.raises(ValueError, match="no question came through"):
        run(tmp_path / "out", *served)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["refused"][reason.KNOWN_BY_HEART] == 1
    assert card["refused"][NOT_THE_FORM] == card["drafts"] - 1
    assert card["model_calls"] == fake.asked
    with pytest.raises(ValueError, match="no question came through"):
        run(tmp_path / "out", *served)
    assert card["model_calls"] == fake.asked, "nothing is asked twice"
    monkeypatch.setattr(Fake, "_one", _ignorant)
    kept = run(tmp_path / "kept", *served)
    assert (kept["kept"], kept["questions"]["train"]) == (1, 1)
    [question] = read_questions(tmp_path / "kept" / "train.jsonl")
    assert question.answers == ("Kare Lund",)
    assert question.metadata["gold_ids"] == ["oslo.md#1", "berg.md#1"]
    assert [step["question"] for step in question.metadata["decomposition"]] == [
        *("Who is the mayor of Oslo?", "Who is Anne Berg's brother?")
    ]


_RIGHT = Fake._one


def _ignorant(self: Fake, asked: str) -> Generation:
    return _RIGHT(self, asked) if "Passage 1" in asked else Generation("nobody", "eos")


def test_a_served_model_proposes(tmp_path: Path) -> None:
    opened(tmp_path / "pages")

    def say(body: dict[str, Any]) -> str:
        asked = json.dumps(body["messages"], ensure_ascii=False)
        return _ignorant(Fake(), asked).text

    with model_server(say) as server:
        url = ("--url", server.url, "--model", "tiny")
        card = run(tmp_path / "out", "--from", "served", *url)
    assert card["kept"] == 1
    assert card["model_calls"] == 3  # two pairs, and the question from memory


def test_the_budget_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "pages")
    fake = Fake()
    monkeypatch.setattr(command, "_generator", lambda given: fake)
    served = ("--from", "local", "--model", "m", "--budget", "1")
    with pytest.raises(ValueError, match="no question came through"):
        run(tmp_path / "out", *served)
    assert fake.asked == 1
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["refused"] == {reason.UNASKED: 1}, "what was not checked is not kept"
    assert "budget of model calls was spent" in (tmp_path / "out" / "card.md").read_text()


def world_index(folder: Path) -> None:
    write_pages(SyntheticWorld(60), folder / "pages")
    build_documents(folder / "pages", folder / "corpus.jsonl")
    build_index(folder / "corpus.jsonl", folder / "index", kind="bm25")


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".jsonl", ".md")}


def test_a_killed_making_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world_index(tmp_path)
    options = ("--count", "20", "--test", "0.2", "--val", "0.1", "--hops", "2", "3")
    card = run(tmp_path / "whole", *options)
    assert card["kept"] == 20
    assert sum(card["refused"].values()) == card["drafts"] - 20
    calls = 0
    checked = IndexChecks.reasons

    def killed(self: IndexChecks, drafts: Sequence[Draft]) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return checked(self, drafts)

    monkeypatch.setattr("research_rl.trainers.make_questions.make._BATCH", 16)
    monkeypatch.setattr(IndexChecks, "reasons", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", *options)
    with (tmp_path / "half" / "journal.jsonl").open("ab") as file:
        file.write(b'{"draft": "2ho')
    monkeypatch.undo()
    run(tmp_path / "half", *options)
    assert files(tmp_path / "half").keys() == files(tmp_path / "whole").keys()
    for name, held in files(tmp_path / "whole").items():
        if name != "journal.jsonl":
            assert files(tmp_path / "half")[name] == held, name
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        run(tmp_path / "half", *options, "--seed", "3")


def test_no_document_is_in_two_splits(tmp_path: Path) -> None:
    world_index(tmp_path)
    run(tmp_path / "out", "--count", "200", "--test", "0.2", "--val", "0.1")
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        file = tmp_path / "out" / f"{split}.jsonl"
        for question in read_questions(file) if file.exists() else ():
            assert question.metadata["split"] == split
            seen.setdefault(split, set()).update(question.metadata["documents"])
    assert len(seen) > 1
    assert not set.intersection(*seen.values())


def test_questions_of_a_file_are_checked(tmp_path: Path) -> None:
    texts, _, _ = opened(tmp_path / "pages")
    rows: list[dict[str, Any]] = [
        {"id": "titles", "metadata": {"supporting_titles": ["Oslo", "Anne Berg"]}},
        {
            "id": "musique",
            "metadata": {
                "gold_ids": ["berg.md#1", "oslo.md#1"],
                "question_decomposition": [
                    {"question": "mayor of Oslo", "answer": "Anne Berg"},
                    {"question": "Who is the brother of #1?", "answer": "Kare Lund"},
                ],
            },
        },
        {"id": "bare"},
    ]
    file = tmp_path / "mine.jsonl"
    told = {"question": GOOD, "answers": ["Kare Lund"]}
    file.write_text("".join(json.dumps(row | told) + "\n" for row in rows))
    drafts = list(GivenQuestions(read_questions(file), texts).drafts({}))
    hops = [one.hops for one in drafts if isinstance(one, Draft)]
    assert [[hop.query for hop in one] for one in hops] == [
        ["Oslo", "Anne Berg"],
        ["mayor of Oslo", "Who is the brother of Anne Berg?"],
        [],
    ]
    assert hops[0][0].answer == "Anne Berg"
    card = run(tmp_path / "out", "--from", "file", "--questions", str(file))
    assert card["refused"] == {reason.NO_CHAIN: 1, reason.REPEATED: 1}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--count", "0"), "--count must be at least 1, got 0"),
        (("--hops", "1"), "--hops must be 2 to 4, got 1"),
        (("--from", "file"), "--questions must come with --from file"),
        (("--from", "served", "--model", "m"), "--from served must come with --url"),
        (("--from", "local"), "--from local must come with --model"),
        (("--url", "http://x"), "--url must come with --model"),
        (("--val", "0.5", "--test", "0.5"), "shares of val and test"),
        (("--top-k", "0"), "top_k and max_words must be at least 1"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    opened(tmp_path / "pages")
    with pytest.raises(ValueError, match=re.escape(said)):
        main(["make", "--index", str(tmp_path / "index"), "--out", str(tmp_path / "o"), *args])


_GROUPS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=20)


@given(_GROUPS, st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_documents_are_dealt_by_their_shares(
    links: list[tuple[str, str]], val: float, test: float, seed: int
) -> None:
    names = list("abcdefghijklmnop")
    dealt = split_documents(names, links, {"val": val, "test": test}, seed)
    assert set(dealt) == set(names)
    assert dealt == split_documents(names[::-1], links, {"val": val, "test": test}, seed)
    for split, share in (("val", val), ("test", test)):
        assert abs(sum(s == split for s in dealt.values()) - share * len(names)) <= 2


def test_components_stay_whole_where_they_can() -> None:
    links = [(f"a{i}", f"a{i + 1}") for i in range(9)] + [(f"b{i}", f"b{i + 1}") for i in range(9)]
    names = {name for pair in links for name in pair}
    for seed in range(5):
        dealt = split_documents(names, links, {"val": 0, "test": 0.3}, seed)
        assert sum(dealt[one] != dealt[other] for one, other in links) <= 2


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_text_has_sentences_and_facts(text: str) -> None:
    from research_rl.envs import Passage

    assert all(one.strip() for one in sentences_of(text))
    texts = Texts([Passage("1", f'"Page"\n{text}')])
    for fact in Facts(texts).all:
        assert fact.query
        assert fact.describe("it")


def test_words_and_subjects() -> None:
    assert word_list("Bakset's boss, Domlor’s") == ("bakset", "boss", "domlor")
    assert subject_of("Guide > Journal (1.2)") == "Journal"
    assert subject_of("(x)") == "(x)"

"""Questions are made of an index, by a budget, and a making that was killed goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles.question_pages import GOOD, opened
from doubles.served_model import model_server
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.agents.methods import Generation, Generator
from research_rl.envs import Question
from research_rl.envs.documents import build_documents
from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index
from research_rl.envs.synthetic import SyntheticWorld, write_pages
from research_rl.trainers.make_questions import checks as reason
from research_rl.trainers.make_questions import command
from research_rl.trainers.make_questions.card import way_on
from research_rl.trainers.make_questions.checks import IndexChecks
from research_rl.trainers.make_questions.command import main
from research_rl.trainers.make_questions.drafts import Draft, Texts, sentences_of, word_list
from research_rl.trainers.make_questions.facts import Facts, subject_of
from research_rl.trainers.make_questions.given import GivenQuestions
from research_rl.trainers.make_questions.journal import Journal
from research_rl.trainers.make_questions.splits import split_documents
from research_rl.trainers.make_questions.written import NOT_THE_FORM


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
    with pytest.raises(
        ValueError, match=r"no question came through: 1 of 1 .*; give a larger --budget"
    ):
        run(tmp_path / "out", *served)
    assert fake.asked == 1
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["refused"] == {reason.UNASKED: 1}, "what was not checked is not kept"
    assert "budget of model calls was spent" in (tmp_path / "out" / "card.md").read_text()


@pytest.mark.parametrize(
    ("refused", "links", "help"),
    [
        ({reason.ONE_SEARCH: 9, reason.TOO_LONG: 2}, (0, 4), "9 of 11 .* a smaller --top-k"),
        ({}, (5, 5), "all 5 links .* smaller --val and --test"),
        ({}, (0, 0), "nothing was drafted: .* --from served"),
    ],
)
def test_what_helps_is_said_where_nothing_came_through(
    refused: dict[str, int], links: tuple[int, int], help: str
) -> None:
    cut = {"cut_by_the_split": links[0], "all": links[1]}
    record = {"drafts": sum(refused.values()), "refused": refused, "links": cut}
    assert re.search(help, way_on(record))


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


def test_another_index_of_the_same_corpus_begins_anew(tmp_path: Path) -> None:
    world_index(tmp_path)
    run(tmp_path / "out", "--count", "5")
    journal = tmp_path / "out" / "journal.jsonl"
    first, _, rest = (whole := journal.read_bytes()).partition(b"\n")
    told = json.loads(first)
    told["settings"]["index"] = "bm25"  # as earlier versions wrote it
    journal.write_bytes(json.dumps(told).encode() + b"\n" + rest)
    run(tmp_path / "out", "--count", "5")
    assert journal.read_bytes() == whole
    build_index(tmp_path / "corpus.jsonl", tmp_path / "index", kind="bm25", overwrite=True, k1=0.5)
    with pytest.raises(ValueError, match=r"other settings \(index\)"):
        run(tmp_path / "out", "--count", "5")


def test_other_weights_another_api_and_other_steps_begin_anew(tmp_path: Path) -> None:
    world_index(tmp_path)
    index, weights = tmp_path / "index", tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")

    def settings_of(*options: str, steps: str = "") -> tuple[dict[str, Any], list[dict[str, Any]]]:
        args = ["make", "--index", str(index), "--out", "out", *options]
        asked = [Question("1", "Who?", ("Domlor",), {"decomposition": [{"question": steps}]})]
        return command._settings(command._parser().parse_args(args), asked)

    local = ("--model", str(weights.parent))
    first, former = settings_of(*local)
    with Journal(tmp_path / "j.jsonl", former[0]):
        pass
    for _ in range(2):
        with Journal(tmp_path / "j.jsonl", first, former):
            pass
    weights.write_bytes(b"two")
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        Journal(tmp_path / "j.jsonl", *settings_of(*local))
    served = ("--model", "m", "--url", "http://127.0.0.1:9/v1")
    assert settings_of(*served)[0] != settings_of(*served, "--api", "completions")[0]
    given = ("--from", "file", "--questions", "q.jsonl")
    assert settings_of(*given, steps="a")[0] != settings_of(*given, steps="b")[0]


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
        {"id": "titles", "metadata": {"supporting_titles": ["‘oslo’", "Anne  Berg"]}},
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

"""Every published layout becomes our files, and the command gets each from where it lies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doubles.published import HOTPOT, Rows, job, write

from research_rl.envs.questions.bad_rows import QuestionError
from research_rl.envs.questions.catalogue import DATASETS, OTHER
from research_rl.envs.questions.cli import main
from research_rl.envs.questions.convert import convert
from research_rl.envs.questions.paragraphs import passage_of
from research_rl.envs.questions.read import read_questions
from research_rl.envs.retrieval.corpus.corpus import Corpus
from research_rl.envs.types import Question

WIKI2: dict[str, Any] = {
    **HOTPOT,
    "type": "compositional",
    "evidences": [["Kiss", "has", "Corliss"]],
    "evidences_id": [["Q1", "Q2", "Q3"]],
    "answer_id": "Q3",
}
MUSIQUE: dict[str, Any] = {
    "id": "2hop__1_2",
    "question": "Who wrote Corliss?",
    "answer": "F. Hugh",
    "answer_aliases": ["Hugh"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Kiss", "paragraph_text": "A film.", "is_supporting": True},
        {"idx": 1, "title": "Kiss", "paragraph_text": "A band.", "is_supporting": False},
        {"idx": 2, "title": "Corliss", "paragraph_text": "A girl.", "is_supporting": True},
    ],
    "question_decomposition": [{"id": 1}, {"id": 2}],
}


def converted(source: Path, name: str = OTHER, **options: Any) -> tuple[Question, dict[str, str]]:
    """The first question and the corpus, id to contents."""
    this = job(source, name, **options)
    manifest = convert(this)
    questions = read_questions(this.out / "questions.jsonl")
    assert len(questions) == manifest.questions
    corpus = this.out / "corpus.jsonl"
    passages = {p.id: p.contents for p in Corpus(corpus)} if corpus.exists() else {}
    assert len(passages) == manifest.passages
    return questions[0], passages


def titles(question: Question, passages: dict[str, str], key: str) -> list[str]:
    return [passages[i].partition("\n")[0].strip('"') for i in question.metadata[key]]


def test_hotpotqa_as_published(tmp_path: Path) -> None:
    question, passages = converted(write(tmp_path / "hotpot_dev.json", [HOTPOT]), "hotpotqa")
    assert (question.id, question.answers) == ("5a8b", ("F. Hugh",))
    assert question.metadata["supporting_titles"] == ["Kiss", "Corliss"]
    assert (question.metadata["hops"], question.metadata["type"]) == (2, "bridge")
    assert (question.metadata["dataset"], question.metadata["split"]) == ("hotpotqa", "dev")
    assert titles(question, passages, "gold_ids") == ["Kiss", "Corliss"]
    assert titles(question, passages, "context_ids") == ["Kiss", "Rome", "Corliss"]
    assert passages[question.metadata["gold_ids"][0]] == '"Kiss"\nKiss is a film. It has Corliss.'


@pytest.mark.parametrize("key", ["sentences", "content"])
@pytest.mark.parametrize("inside", [False, True])
def test_hub_and_flashrag_copies_hold_the_same(tmp_path: Path, key: str, inside: bool) -> None:
    facts = {
        "supporting_facts": {"title": ["Kiss", "Corliss"], "sent_id": [0, 1]},
        "context": {
            "title": [title for title, _ in HOTPOT["context"]],
            key: [sentences for _, sentences in HOTPOT["context"]],
        },
        "type": "bridge",
    }
    row: dict[str, Any] = {"id": "5a8b", "question": "Who?", "golden_answers": ["F. Hugh"]}
    row |= {"metadata": facts} if inside else facts
    question, passages = converted(write(tmp_path / "dev.jsonl", [row]), "hotpotqa")
    assert titles(question, passages, "gold_ids") == ["Kiss", "Corliss"]
    assert question.metadata["type"] == "bridge"
    assert "context" not in question.metadata
    official = write(tmp_path / "official.json", [HOTPOT])
    assert converted(official, "hotpotqa", out=tmp_path / "2")[1] == passages


def test_2wikimultihopqa_with_and_without_aliases(tmp_path: Path) -> None:
    source = write(tmp_path / "dev.json", [WIKI2])
    question, _ = converted(source, "2wikimultihopqa")
    assert question.answers == ("F. Hugh",)
    assert question.metadata["evidences"] == WIKI2["evidences"]
    names = [{"Q_id": "Q3", "aliases": ["Hugh"], "demonyms": ["Hughish"]}]
    aliases = write(tmp_path / "id_aliases.jsonl", names)
    question, _ = converted(source, "2wikimultihopqa", aliases=aliases)
    assert question.answers == ("F. Hugh", "Hugh", "Hughish")
    aliases.write_text('{"Q_id": "Q3"}\n{"aliases": []}\n')
    with pytest.raises(QuestionError, match=r"id_aliases\.jsonl:2: must be"):
        convert(job(source, "2wikimultihopqa", aliases=aliases))


def test_2wikimultihopqa_with_fields_as_json_text(tmp_path: Path) -> None:
    keys = ("context", "supporting_facts", "evidences")
    row = {**WIKI2, **{key: json.dumps(WIKI2[key]) for key in keys}}
    question, passages = converted(write(tmp_path / "dev.parquet", [row]), "2wikimultihopqa")
    assert titles(question, passages, "gold_ids") == ["Kiss", "Corliss"]
    with pytest.raises(QuestionError, match=r"\.jsonl:1: context must hold JSON"):
        convert(job(write(tmp_path / "bad.jsonl", [{**row, "context": "[["}])))


def test_musique_ans_and_full(tmp_path: Path) -> None:
    unanswerable = {**MUSIQUE, "answerable": False, "answer": "", "answer_aliases": []}
    this = job(write(tmp_path / "full_dev.jsonl", [unanswerable, MUSIQUE]), "musique")
    manifest = convert(this)
    assert (manifest.questions, manifest.unanswerable) == (1, 1)
    [question] = read_questions(this.out / "questions.jsonl")
    assert question.answers == ("F. Hugh", "Hugh")
    assert question.metadata["hops"] == 2
    gold = [passage_of("Kiss", "A film.").id, passage_of("Corliss", "A girl.").id]
    assert question.metadata["gold_ids"] == gold  # of two paragraphs with one title, the right one


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_bamboogle(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"Question": 'Who, "x",\nwrote it?', "Answer": "A, B"},
        {"Question": "When?", "Answer": "1"},
    ]
    source = write(tmp_path / f"Bamboogle Prerelease{suffix}", rows)
    question, passages = converted(source, "bamboogle", split="test")
    assert (question.id, question.answers) == ("test_0", ("A, B",))
    assert question.text == 'Who, "x",\nwrote it?'
    assert question.metadata["hops"] == 2
    assert not passages


def test_single_hop_sets(tmp_path: Path) -> None:
    nq: Rows = [{"question": "who?", "answer": ["A", "B"]}]
    assert converted(write(tmp_path / "nq.jsonl", nq), "nq")[0].answers == ("A", "B")
    answer = {"Value": "A", "Aliases": ["A", "AA"], "NormalizedAliases": ["a"]}
    trivia = {"Data": [{"Question": "who?", "QuestionId": "tc_1", "Answer": answer}], "V": 1.0}
    (tmp_path / "unfiltered-web-dev.json").write_text(json.dumps(trivia, indent=2))
    question, _ = converted(tmp_path / "unfiltered-web-dev.json", "triviaqa", out=tmp_path / "t")
    assert (question.id, question.answers) == ("tc_1", ("A", "AA"))
    pop = [{"id": "7", "subj": "x", "question": "who?", "possible_answers": '["A", "B"]'}]
    question, _ = converted(write(tmp_path / "popqa.tsv", pop), "popqa", out=tmp_path / "p")
    assert (question.id, question.answers) == ("7", ("A", "B"))


def test_parquet_of_research_and_search_r1(tmp_path: Path) -> None:
    research: Rows = [
        {"question": "who?", "reward_model": {"ground_truth": ["A"]}, "extra_info": {"id": "x"}}
    ]
    question, _ = converted(write(tmp_path / "train.parquet", research))
    assert (question.id, question.answers) == ("x", ("A",))
    search_r1: Rows = [
        {
            "data_source": "nq",
            "id": "test_0",
            "prompt": [{"role": "user", "content": "Answer. Question: who?\n"}],
            "reward_model": {"ground_truth": {"target": ["A"]}},
        }
    ]
    source = write(tmp_path / "test.parquet", search_r1)
    question, _ = converted(source, "nq", out=tmp_path / "s")
    assert (question.id, question.text) == ("nq/test_0", "who?")


def test_paragraphs_are_written_once_with_ids_of_their_contents(tmp_path: Path) -> None:
    again = {**HOTPOT, "_id": "other", "question": "Another?", "context": HOTPOT["context"][::-1]}
    _, passages = converted(write(tmp_path / "dev.json", [HOTPOT, again]), "hotpotqa")
    assert len(passages) == 3
    _, alone = converted(write(tmp_path / "b.json", [again]), "hotpotqa", out=tmp_path / "b")
    assert alone == passages


def test_gold_ids_need_every_supporting_paragraph(tmp_path: Path) -> None:
    fullwiki = {**HOTPOT, "context": HOTPOT["context"][:2]}
    question, _ = converted(write(tmp_path / "dev.json", [fullwiki]), "hotpotqa")
    assert "gold_ids" not in question.metadata
    assert question.metadata["supporting_titles"] == ["Kiss", "Corliss"]


def test_real_samples_pass_unchanged(real_data: Path, tmp_path: Path) -> None:
    for name in ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle"):
        source = real_data / f"{name}_small_questions.jsonl"
        source = source if source.exists() else real_data / f"{name}_questions.jsonl"
        convert(job(source, name, out=tmp_path / name))
        before, after = read_questions(source), read_questions(tmp_path / name / "questions.jsonl")
        assert [(q.id, q.text, q.answers) for q in before] == [
            (q.id, q.text, q.answers) for q in after
        ]
        for old, new in zip(before, after, strict=True):
            assert new.metadata.get("gold_ids") == old.metadata.get("gold_ids")


class FakeHub:
    """Stands in for ``datasets``: one HotpotQA row under the names that are asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def load_dataset(self, *names: Any, split: str) -> Rows:
        self.asked.append((*names, split))
        return [HOTPOT]


def test_get_asks_the_hub_for_the_right_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = FakeHub()
    fake = SimpleNamespace(load_dataset=hub.load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    main(["get", "hotpotqa", "--split", "dev", "--out", str(tmp_path / "f")])
    original = ["get", "hotpotqa", "--split", "dev", "--source", "original"]
    main([*original, "--out", str(tmp_path / "o")])
    assert hub.asked == [
        ("RUC-NLPIR/FlashRAG_datasets", "hotpotqa", "dev"),
        ("hotpotqa/hotpot_qa", "distractor", "validation"),
    ]
    said = capsys.readouterr()
    assert f"{tmp_path / 'f' / 'questions.jsonl'}: 1 questions of dev" in said.out
    assert "research index build --corpus" in said.out
    assert "FlashRAG's copy of HotpotQA dev has 7405 questions, got 1" in said.err
    with pytest.raises(ValueError, match=r"no split 'train' \(it has: test\)"):
        main(["get", "popqa", "--split", "train", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="has no original on the Hub; fetch its files from"):
        main([*original[:1], "nq", *original[2:], "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "split", "warns"),
    [
        ("hotpot_dev_distractor_v1", "dev", False),
        ("musique_ans_v1.0_train", "train", False),
        ("nq-test", "test", False),
        ("values", "test", True),
        ("latest", "test", True),
    ],
)
def test_an_assumed_split_is_said(
    name: str, split: str, warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"{name}.csv"
    source.write_text("question,answer\nWho ?,Ann\n", encoding="utf-8")
    main(["convert", "--from", "other", str(source), "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert f"1 questions of {split}" in told.out
    assert (f"{name}.csv does not say which split it holds, taken as test" in told.err) == warns


def test_the_command_converts_and_guesses_the_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "musique_full_v1.0_train.jsonl", [{**MUSIQUE}])
    main(["convert", "--from", "musique", str(source), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert "1 questions of train" in said.out
    assert "3 passages" in said.out
    assert "warning:" in said.err
    with pytest.raises(FileNotFoundError, match="no question file"):
        main(["convert", "--from", "musique", str(tmp_path / "none"), "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="did you mean hotpotqa"):
        main(["convert", "--from", "hotpot", str(source), "--out", str(tmp_path)])


def test_the_list_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    said = capsys.readouterr().out
    assert all(name in said for name in DATASETS)
    assert "12576" in said

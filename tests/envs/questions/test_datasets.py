"""Every published layout becomes our files, whole or not at all, and what is odd is named."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research_rl.envs.questions import json_array
from research_rl.envs.questions.bad_rows import QuestionError
from research_rl.envs.questions.catalogue import DATASETS, OTHER, find_dataset
from research_rl.envs.questions.cli import main
from research_rl.envs.questions.convert import DatasetError, Job, convert, read_data_manifest
from research_rl.envs.questions.files import open_rows
from research_rl.envs.questions.paragraphs import passage_of
from research_rl.envs.questions.read import read_questions
from research_rl.envs.retrieval.corpus.corpus import Corpus
from research_rl.envs.system.files import sha256_of
from research_rl.envs.system.locks import LOCK, alone_in
from research_rl.envs.types import Question

Rows = list[dict[str, Any]]

HOTPOT: dict[str, Any] = {
    "_id": "5a8b",
    "question": "Who wrote Corliss?",
    "answer": "F. Hugh",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Kiss", 0], ["Corliss", 1], ["Kiss", 1]],
    "context": [
        ["Kiss", ["Kiss is a film.", " It has Corliss."]],
        ["Rome", ["Rome is a city."]],
        ["Corliss", ["Corliss is a girl.", " F. Hugh wrote her."]],
    ],
}
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


def write(path: Path, rows: Rows) -> Path:
    """Write rows in the container that the suffix names."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


def job(source: Path, name: str = OTHER, **options: Any) -> Job:
    out = options.pop("out", source.parent / "out")
    return Job(find_dataset(name), options.pop("split", "dev"), source, out, **options)


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


def test_another_count_is_told_and_with_strict_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "dev.json", [HOTPOT])
    manifest = convert(job(source, "hotpotqa"))
    assert "HotpotQA dev has 7405 questions, got 1" in manifest.warnings[-1]
    assert read_data_manifest(tmp_path / "out") == manifest
    with pytest.raises(DatasetError, match="has 7405 questions, got 1"):
        convert(job(source, "hotpotqa", strict=True, out=tmp_path / "strict"))
    assert [path.name for path in (tmp_path / "strict").iterdir()] == [LOCK]
    with pytest.raises(DatasetError, match="has 7405 questions, got 1"):
        convert(job(source, "hotpotqa", strict=True))  # converted before, and no better for it
    assert convert(job(source, "hotpotqa", limit=1, out=tmp_path / "few")).warnings == []


def test_the_right_count_passes_strict(tmp_path: Path) -> None:
    rows = [{"Question": f"Who is {number}?", "Answer": "A"} for number in range(125)]
    source = write(tmp_path / "bamboogle.csv", rows)
    manifest = convert(job(source, "bamboogle", split="test", strict=True))
    assert (manifest.questions, manifest.warnings) == (125, [])


def test_a_file_of_a_published_name_must_have_the_published_hash(tmp_path: Path) -> None:
    source = write(tmp_path / "hotpot_dev_distractor_v1.json", [HOTPOT])
    warnings = convert(job(source, "hotpotqa")).warnings
    assert f"this one {sha256_of(source)}" in warnings[0]


def test_the_same_is_not_done_twice_and_other_things_are(tmp_path: Path) -> None:
    source = write(tmp_path / "dev.json", [HOTPOT])
    seen: list[int] = []
    this = job(source, "hotpotqa")
    first = convert(this, lambda: seen.append(1))
    assert convert(this, lambda: seen.append(1)) == first
    assert len(seen) == 1
    (this.out / "corpus.jsonl").write_text("spoilt")
    convert(this, lambda: seen.append(1))
    write(source, [HOTPOT, {**HOTPOT, "_id": "2"}])
    assert convert(this, lambda: seen.append(1)).questions == 2
    assert len(seen) == 4


def test_two_processes_never_write_to_one_folder(tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text('{"id": "a", "question": "Who?", "golden_answers": ["x"]}\n')
    this = Job(find_dataset(OTHER), "test", source, tmp_path / "out")
    with alone_in(this.out), pytest.raises(FileExistsError, match="another process"):
        convert(this)
    assert [path.name for path in this.out.iterdir()] == [LOCK]
    assert convert(this).questions == 1


def test_what_was_there_outlives_a_failure(tmp_path: Path) -> None:
    this = job(write(tmp_path / "dev.json", [HOTPOT]), "hotpotqa")
    convert(this)
    before = {path.name: path.read_bytes() for path in this.out.iterdir()}
    for left in ("questions.jsonl.part", ".corpus.jsonl.77.partial"):
        (this.out / left).touch()  # of one that was killed, in 0.1.0 and now
    write(tmp_path / "dev.json", [HOTPOT, {**HOTPOT, "_id": "2", "answer": None}])
    with pytest.raises(QuestionError, match="has no answers"):
        convert(replace(this, strict=True))
    assert {path.name: path.read_bytes() for path in this.out.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, r"dev\.jsonl:3: question '2' has no answers"),
        ({"answer": []}, r"dev\.jsonl:3: question '2' has no answers"),
        ({"question": None}, r"dev\.jsonl:3: question must be text"),
        ({"_id": "5a8b"}, r"dev\.jsonl:3: id '5a8b' is already used in line 1"),
        ({"context": [["Kiss"]]}, r"dev\.jsonl:3: a paragraph must be \[title, sentences\]"),
        ({"context": {"title": ["a"], "sentences": []}}, r":3: context has 1 titles for 0"),
        ({"context": [["Kiss", [1]]]}, r"dev\.jsonl:3: a sentence must be text, got 1"),
        ({"paragraphs": [3]}, r"dev\.jsonl:3: a paragraph must be an object, got int"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    source = tmp_path / "dev.jsonl"
    rows = [HOTPOT, {**HOTPOT, "_id": "2", **change}]
    source.write_text("\n\n".join(map(json.dumps, rows)))
    with pytest.raises(QuestionError, match=message):
        convert(replace(job(source, "hotpotqa"), strict=True))
    assert not (tmp_path / "out" / "questions.jsonl").exists()
    manifest = convert(job(source, "hotpotqa"))
    assert (manifest.questions, manifest.left_out) == (1, 1)
    assert "1 row is left out: line 3: " in manifest.warnings[0]


def test_bad_rows_are_counted_the_first_three_shown_and_most_are_too_many(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": f"Who is {i}?", "answer": "Ann"} for i in range(6)]
    lines = [json.dumps(row) for row in rows]
    source = tmp_path / "dev.jsonl"
    source.write_text("\n".join([*lines, "{broken", "[]", *(['{"question": "x"}'] * 3)]))
    manifest = convert(job(source))
    assert (manifest.questions, manifest.left_out) == (6, 5)
    said = manifest.warnings[0]
    assert "5 rows are left out: line 7: must be a JSON object, got '{broken'" in said
    assert "; line 8: a question must be" in said
    assert said.endswith("; and 2 more lines")
    with pytest.raises(QuestionError, match=r"dev\.jsonl:7: .*; line 9: .*; and 2 more lines"):
        read_questions(source)
    source.write_text("\n".join([lines[0], "[]", "[]"]))
    with pytest.raises(QuestionError, match=r"dev\.jsonl:2: .*; line 3: "):
        convert(job(source))


def test_equal_texts_with_different_ids_are_told_and_kept(tmp_path: Path) -> None:
    rows = [HOTPOT, {**HOTPOT, "_id": "2", "question": "who  wrote CORLISS?"}]
    manifest = convert(job(write(tmp_path / "dev.json", rows)))
    assert (manifest.questions, manifest.same_text) == (2, 1)
    assert "1 questions have the text of another, the first '2' that of '5a8b'" in str(
        manifest.warnings
    )


def test_an_empty_file_and_a_bad_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(QuestionError, match="holds no questions"):
        convert(job(tmp_path / "empty.jsonl"))
    (tmp_path / "b.csv").write_text('Question,Answer\n"two\nlines",A\nonly\n')
    with pytest.raises(QuestionError, match=r"b\.csv:4: must have 2 columns \(question, answer\)"):
        convert(replace(job(tmp_path / "b.csv"), strict=True))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(JSON, max_size=6), st.integers(2, 40), st.sampled_from([None, 1]), st.booleans())
def test_arrays_are_read_through_any_window(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[Any],
    block: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + "\n", "utf-8")
    if not rows:
        path.write_text("[ ]")
    monkeypatch.setattr(json_array, "_BLOCK", block)
    assert [row for _, row in open_rows(path)[1]] == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(alphabet='[]{}",:1a\n ', max_size=20), st.integers(2, 30))
def test_a_broken_array_is_a_question_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: str, block: int
) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[" + tail)
    monkeypatch.setattr(json_array, "_BLOCK", block)
    try:
        rows = [row for _, row in open_rows(path)[1]]
    except QuestionError as error:
        assert error.line is None or error.line <= 1 + tail.count("\n")  # noqa: PT017
    else:
        assert json.JSONDecoder().raw_decode("[" + tail)[0] == rows


def test_lines_of_an_array_are_counted_through_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"a": 1},\n\n{"a":\n 2}, {"a": 3}\n,{"a" 4}]')
    monkeypatch.setattr(json_array, "_BLOCK", 8)
    lines: list[int] = []
    with pytest.raises(QuestionError, match=r"rows\.json:6: must be a JSON array"):
        lines.extend(line for line, _ in open_rows(path)[1])
    monkeypatch.undo()
    path.write_text('[\n{"a": 1},\n\n{"a":\n 2}, {"a": 3}\n]')
    assert [line for line, _ in open_rows(path)[1]] == [2, 4, 5]


def test_a_row_is_given_before_what_follows_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(
        b'[{"a": 1},\n {"a": "' + b"x" * 100 + b'"},' + b" " * 300 + b'\n {"a": "caf\xe9"}]'
    )
    monkeypatch.setattr(json_array, "_BLOCK", 16)
    rows = open_rows(path)[1]
    assert next(rows) == (1, {"a": 1})
    assert next(rows)[0] == 2
    with pytest.raises(QuestionError, match=r"rows\.json:3: must be UTF-8, got byte 0xe9"):
        next(rows)


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(
    "text", ['[1, "\u00e9\u20ac\U0001f600"]', '{"Data": [1, "\u00e9\u20ac\U0001f600"], "V": 1.0}']
)
def test_an_array_behind_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, "utf-8-sig")
    monkeypatch.setattr(json_array, "_BLOCK", block)
    assert [row for _, row in open_rows(path)[1]] == [1, "\u00e9\u20ac\U0001f600"]
    path.write_bytes(path.read_bytes()[:14])  # ends within a character, or within the array
    with pytest.raises(QuestionError, match=r"rows\.json:1: must be"):
        list(open_rows(path)[1])


TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=2)), min_size=1, max_size=4))
def test_any_text_comes_back(tmp_path: Path, pairs: Sequence[tuple[str, list[str]]]) -> None:
    rows = [
        {"id": str(number), "question": text, "golden_answers": answers}
        for number, (text, answers) in enumerate(pairs)
    ]
    this = job(write(tmp_path / "any.jsonl", rows))
    convert(this)
    found = read_questions(this.out / "questions.jsonl")
    assert [q.text for q in found] == [text.strip() for text, _ in pairs]
    assert [q.answers for q in found] == [tuple(dict.fromkeys(answers)) for _, answers in pairs]


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

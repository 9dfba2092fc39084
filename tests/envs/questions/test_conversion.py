"""A conversion is whole or not at all, done once, and names what is odd."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.published import HOTPOT, job, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research_rl.envs.questions.bad_rows import QuestionError
from research_rl.envs.questions.catalogue import OTHER, find_dataset
from research_rl.envs.questions.convert import DatasetError, Job, convert, read_data_manifest
from research_rl.envs.questions.read import read_questions
from research_rl.envs.system.files import sha256_of
from research_rl.envs.system.locks import LOCK, alone_in


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
    with pytest.raises(DatasetError, match=r"1 rows were left out .* without --strict"):
        convert(replace(job(source, "hotpotqa"), strict=True))


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
    (tmp_path / "c.csv").write_text("question,answer,Answer\nWho?,Ann,Bea\n")
    with pytest.raises(QuestionError, match=r"c\.csv:1: must name each column once, got answer"):
        convert(job(tmp_path / "c.csv"))


TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
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

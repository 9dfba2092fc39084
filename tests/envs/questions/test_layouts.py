"""Rows of every published layout, read as questions and as passages by one adapter."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.questions import (
    QuestionError,
    passages_in,
    question_from_dict,
    read_questions,
)
from research_rl.envs.questions.catalogue import find_dataset
from research_rl.envs.questions.convert import Job, convert
from research_rl.envs.questions.layouts import plain_row
from research_rl.envs.retrieval.corpus import Corpus, local_corpus
from research_rl.envs.types import Question

CONTEXT = [["Oslo", ["Oslo is a city.", "It lies in Norway."]], ["Lima", ["Lima is another."]]]
FACTS = [["Oslo", 1]]
WIKI2 = {
    "_id": "w1",
    "question": "Where is Oslo?",
    "answer": "Norway",
    "type": "bridge",
    "supporting_facts": FACTS,
    "evidences": [["Oslo", "country", "Norway"]],
    "context": CONTEXT,
}
AS_TEXT = {k: json.dumps(v) if isinstance(v, list) else v for k, v in WIKI2.items()}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Where is Oslo?",
    "answer": "Norway",
    "answer_aliases": ["Kingdom of Norway"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Oslo", "paragraph_text": "In Norway.", "is_supporting": True},
        {"idx": 1, "title": "Lima", "paragraph_text": "In Peru.", "is_supporting": False},
    ],
}
KILT = {
    "id": "k1",
    "input": "Where is Oslo?",
    "output": [
        {"answer": "Norway", "provenance": [{"wikipedia_id": "7", "title": "Oslo"}]},
        {"answer": "Norway"},
        {"provenance": [{"title": "Lima"}]},
    ],
}
ARTICLE = {
    "title": "Oslo",
    "paragraphs": [
        {
            "context": "Oslo lies in Norway.",
            "qas": [
                {
                    "id": "s1",
                    "question": "Where is Oslo?",
                    "answers": [{"text": "Norway", "answer_start": 13}] * 2,
                },
                {"id": "s2", "question": "Why?", "answers": [], "is_impossible": True},
            ],
        }
    ],
}
SQUAD_HUB = {
    "id": "s1",
    "title": "Oslo",
    "context": "Oslo lies in Norway.",
    "question": "Where is Oslo?",
    "answers": {"text": ["Norway", "Norway"], "answer_start": [13, 13]},
}
MARCO = {
    "query": "where is oslo",
    "query_id": 42,
    "answers": ["Norway"],
    "passages": [
        {"passage_text": "Oslo lies in Norway.", "is_selected": 1, "url": "http://a"},
        {"passage_text": "Lima does not.", "is_selected": 0, "url": "http://b"},
    ],
}
DPR = {
    "question": "where is oslo",
    "answers": ["Norway"],
    "positive_ctxs": [{"title": "Oslo", "text": "in Norway", "passage_id": "3"}],
}
TRIVIA = {
    "Question": "Where is Oslo?",
    "QuestionId": "t1",
    "Answer": {"Value": "Norway", "Aliases": ["Norge"], "Type": "x"},
}


def write(path: Path, content: Any) -> Path:
    lines = content if isinstance(content, list) else None
    text = json.dumps(content) if lines is None else "\n".join(map(json.dumps, lines)) + "\n"
    path.write_text(text, "utf-8")
    return path


def only(path: Path) -> Question:
    (question,) = read_questions(path)
    return question


@pytest.mark.parametrize("row", [WIKI2, AS_TEXT, {**AS_TEXT, "context": repr(CONTEXT)}])
def test_json_inside_text_is_read_directly_as_in_a_conversion(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    file = write(tmp_path / "dev.jsonl", [row])
    question = only(file)
    assert question.answers == ("Norway",)
    assert question.metadata["supporting_titles"] == ["Oslo"]
    assert question.metadata["hops"] == 1
    assert question.metadata["evidences"] == [["Oslo", "country", "Norway"]]
    convert(Job(find_dataset("2wikimultihopqa"), "dev", file, tmp_path / "out"))
    converted = only(tmp_path / "out" / "questions.jsonl")
    assert converted.metadata["supporting_titles"] == ["Oslo"]
    texts = [p.contents for p in Corpus(local_corpus(file, tmp_path / "i"))]
    assert texts == ['"Oslo"\nOslo is a city. It lies in Norway.', '"Lima"\nLima is another.']
    assert converted.metadata["gold_ids"] == [Corpus(tmp_path / "out" / "corpus.jsonl")[0].id]


@pytest.mark.parametrize(
    ("row", "identity", "answers", "known"),
    [
        (KILT, "k1", ("Norway",), {"supporting_titles": ["Oslo"]}),
        (SQUAD_HUB, "s1", ("Norway",), {}),
        (MARCO, "42", ("Norway",), {}),
        (TRIVIA, "t1", ("Norway", "Norge"), {}),
        (DPR, None, ("Norway",), {}),
        ({"question": "q", "answer": "['a', \"b's\"]"}, None, ("a", "b's"), {}),
        ({"question": "q", "golden_answers": "['a' 'b']"}, None, ("a", "b"), {}),
        ({"question": "q", "answers": '["a", "b"]'}, None, ("a", "b"), {}),
        ({"question": "q", "possible_answers": '["a"]'}, None, ("a",), {}),
        (
            {"question": "q", "reward_model": {"ground_truth": {"target": "['a']"}}},
            *(None, ("a",), {}),
        ),
        (
            {"question": "q", "answer": "a", "gold_ids": "['1', '2']"},
            *(None, ("a",), {"gold_ids": ["1", "2"]}),
        ),
    ],
)
def test_rows_of_others_are_questions(
    row: dict[str, Any], identity: str | None, answers: tuple[str, ...], known: dict[str, Any]
) -> None:
    question = question_from_dict(row)
    assert question.answers == answers
    assert identity is None or question.id == identity
    assert known.items() <= question.metadata.items()


@pytest.mark.parametrize(
    "text",
    ["[1]", "[a, b]", "['a', b]", "['a'; 'b']", "[Beloved]", "['a' , 'b' 'c']", "['a'"],
)
def test_an_answer_that_only_looks_like_a_list_is_one(text: str) -> None:
    assert question_from_dict({"question": "q", "answer": text}).answers == (text,)


@given(st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4))
def test_lists_that_python_json_or_numpy_wrote_come_back(answers: list[str]) -> None:
    wanted = tuple(dict.fromkeys(answers))
    for text in (repr(answers), json.dumps(answers), f"[{' '.join(map(repr, answers))}]"):
        assert question_from_dict({"question": "q", "answer": text}).answers == wanted


def test_numbers_in_a_list_of_answers_are_texts_and_a_single_answer_may_be_a_vector() -> None:
    cell = "[1990, 1.50]"
    assert question_from_dict({"question": "q", "answers": cell}).answers == ("1990", "1.50")
    assert question_from_dict({"question": "q", "answer": cell}).answers == (cell,)


def test_a_table_says_in_text_what_has_no_answer(tmp_path: Path) -> None:
    rows = [
        "id,question,answer,answerable",
        "1,when?,1990,True",
        "2,who?,x,False",
        "3,how?,y,",
        "5,a?,b,nan",
        "6,c?,d,0.0",
    ]
    file = tmp_path / "musique.csv"
    file.write_text("\n".join(rows), encoding="utf-8")
    assert [q.id for q in read_questions(file)] == ["1", "3", "5"]
    manifest = convert(Job(find_dataset("other"), "dev", file, tmp_path / "out"))
    assert (manifest.questions, manifest.unanswerable) == (3, 2)
    file.write_text("\n".join([*rows, "4,why?,z,perhaps"]), encoding="utf-8")
    with pytest.raises(QuestionError, match="answerable must be true or false, got 'perhaps'"):
        read_questions(file)


def test_squad_as_published(tmp_path: Path) -> None:
    for head in ({"version": "v2.0"}, {}):
        file = write(tmp_path / "train-v2.0.json", {**head, "data": [ARTICLE], "end": 1})
        question = only(file)
        assert (question.id, question.answers) == ("s1", ("Norway",))
    manifest = convert(Job(find_dataset("other"), "dev", file, tmp_path / "out"))
    assert (manifest.questions, manifest.passages, manifest.unanswerable) == (1, 1, 1)
    (passage,) = Corpus(local_corpus(file, tmp_path / "i"))
    assert passage.contents == '"Oslo"\nOslo lies in Norway.'
    assert only(tmp_path / "out" / "questions.jsonl").metadata["gold_ids"] == [passage.id]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([MUSIQUE, {**MUSIQUE, "id": "x"}], ['"Oslo"\nIn Norway.', '"Lima"\nIn Peru.']),
        ([MARCO], ["Oslo lies in Norway.", "Lima does not."]),
        ([SQUAD_HUB, {**SQUAD_HUB, "id": "s9"}], ['"Oslo"\nOslo lies in Norway.']),
        (
            [
                {
                    "_id": "7",
                    "wikipedia_title": "Oslo",
                    "text": ["Oslo", "Oslo is a city.\n", "Section::::History.", "It is old."],
                }
            ],
            ['"Oslo"\nOslo is a city.', '"Oslo"\nIt is old.'],
        ),
        ([{"pid": "m1", "passage": "An MS MARCO passage."}], ["An MS MARCO passage."]),
        (
            [{"docid": "d1", "url": "u", "title": "T", "headings": "h", "body": "A page."}],
            ['"T"\nA page.'],
        ),
    ],
)
def test_rows_of_others_are_passages(
    tmp_path: Path, rows: Sequence[dict[str, Any]], wanted: list[str]
) -> None:
    file = write(tmp_path / "c.jsonl", list(rows))
    found = Corpus(local_corpus(file, tmp_path / "i"))
    assert [p.contents for p in found] == wanted


def test_ids_of_kilts_paragraphs_tell_their_page(tmp_path: Path) -> None:
    row = {"_id": "7", "wikipedia_title": "Oslo", "text": ["Oslo", "A city.", "Old."]}
    assert [p["id"] for p in passages_in(row, 0)] == ["7-1", "7-2"]
    with pytest.raises(ValueError, match=r"must have a column contents or text, or paragraphs"):
        list(passages_in({"question": "q", "answers": ["a"]}, 0))


def delimited(rows: Sequence[Sequence[str]], between: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=between, lineterminator="\n").writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "rows", "between"),
    [
        ("nq-dev.qa.csv", [["who, then?", "['a', \"b's\"]"], ["why?", '["c"]']], "\t"),
        ("q.tsv", [["1", "who, then?", "['a', \"b's\"]"], ["2", "why?", "c"]], "\t"),
        ("q.csv", [["who, then?", "['a', \"b's\"]"], ["why?", "c"]], ","),
        ("h.csv", [["question", "answer"], ["who, then?", "['a', \"b's\"]"], ["why?", "c"]], ","),
        (
            "h.tsv",
            [
                ["id", "question", "golden_answers"],
                ["1", "who, then?", "['a', \"b's\"]"],
                ["2", "why?", "c"],
            ],
            "\t",
        ),
    ],
)
def test_questions_of_tables_with_and_without_names(
    tmp_path: Path, name: str, rows: list[list[str]], between: str
) -> None:
    file = tmp_path / name
    file.write_text(delimited(rows, between), "utf-8")
    found = [(q.text, q.answers) for q in read_questions(file)]
    assert found == [("who, then?", ("a", "b's")), ("why?", ("c",))]


def test_a_table_of_another_shape_is_named(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    file.write_text("a\tb\tc\td\n")
    with pytest.raises(ValueError, match=r"q\.tsv:1: must have a line of names, or the columns qu"):
        read_questions(file)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=6)
        | st.sampled_from(["[", "['a'", "{}", "[[]]"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "text",
                        "qas",
                        "context",
                        "answers",
                        "output",
                        "input",
                        "paragraphs",
                        "query",
                        "passages",
                        "metadata",
                        "title",
                        "reward_model",
                        "Answer",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=8,
    )
)
def test_any_row_is_read_or_a_value_error(row: Any) -> None:
    for read in (plain_row, question_from_dict, lambda one: list(passages_in(one, 0))):
        try:
            read(row)
        except ValueError:
            continue

"""Questions come out the same whatever file holds them, and a bad line says where it is."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.questions.bad_rows import QuestionError
from research_rl.envs.questions.files import find_split
from research_rl.envs.questions.read import question_from_dict, read_questions
from research_rl.envs.types import UNANSWERABLE

FLASHRAG = {
    "id": "dev_0",
    "question": "Who wrote Emma?",
    "golden_answers": ["Jane Austen", "Austen"],
    "metadata": {"hops": 2, "gold_ids": ["3", "7"], "context": ["long"], "type": "bridge"},
}
HOTPOT = {
    "_id": "5a7",
    "question": "Were they of the same nationality?",
    "answer": "yes",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0], ["Ed Wood", 2]],
    "context": [["Ed Wood", ["A film. ", "By Burton."]]],
}
TWO_WIKI = {
    **HOTPOT,
    "type": "compositional",
    "answer": "Rome",
    "evidences": [["Ed Wood", "director", "Tim"], ["Tim", "birthplace", "Rome"]],
    "entity_ids": "Q1_Q2",
}
MUSIQUE = {
    "id": "3hop1__210639_147339_51423",
    "question": "What is the castle's name?",
    "answer": "Casa Loma",
    "answer_aliases": ["The Casa Loma", "Casa Loma"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Casa Loma", "paragraph_text": "...", "is_supporting": True},
        {"idx": 1, "title": "Elsewhere", "paragraph_text": "...", "is_supporting": False},
        {"idx": 2, "title": "Paul Kane", "paragraph_text": "...", "is_supporting": True},
    ],
    "question_decomposition": [{"id": 1, "question": "q", "answer": "a"}] * 3,
}
RESEARCH = {
    "data_source": "musique",
    "question": "Who wrote Emma?",
    "reward_model": {"style": "rule", "ground_truth": ["Jane Austen"]},
    "extra_info": {"id": "2hop__1_2"},
}
SEARCH_R1 = {
    "id": "test_0",
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer. Question: Who wrote Emma?\n"}],
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Jane Austen"]}},
    "extra_info": {"index": 0, "split": "test"},
}


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, *rows: dict[str, Any]) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(list(rows)), path)
    return path


def test_flashrag_keeps_answers_and_metadata_but_not_the_paragraphs(tmp_path: Path) -> None:
    (question,) = read_questions(write_lines(tmp_path / "q.txt", FLASHRAG))
    assert (question.id, question.text) == ("dev_0", "Who wrote Emma?")
    assert question.answers == ("Jane Austen", "Austen")
    assert question.metadata == {"hops": 2, "gold_ids": ["3", "7"], "type": "bridge"}


@pytest.mark.parametrize("row", [HOTPOT, TWO_WIKI])
@pytest.mark.parametrize("indent", [None, 2])
def test_hotpotqa_and_2wiki_arrays(tmp_path: Path, row: dict[str, Any], indent: int | None) -> None:
    path = tmp_path / "dev_without_suffix"
    path.write_text(json.dumps([row, {**row, "_id": "other"}], indent=indent))
    first, second = read_questions(path)
    assert (first.id, second.id) == ("5a7", "other")
    assert first.answers == (row["answer"],)
    assert first.metadata["supporting_titles"] == ["Scott Derrickson", "Ed Wood"]
    assert first.metadata["hops"] == 2
    assert first.metadata["type"] == row["type"]
    assert first.metadata.get("evidences") == row.get("evidences")
    assert "context" not in first.metadata


def test_the_hubs_copy_of_hotpotqa(tmp_path: Path) -> None:
    facts = {"title": ["A", "B", "A"], "sent_id": [0, 1, 2]}
    row = {**HOTPOT, "supporting_facts": facts}
    (question,) = read_questions(write_lines(tmp_path / "h.jsonl", row))
    assert question.metadata["supporting_titles"] == ["A", "B"]


def test_musique_joins_aliases_and_passes_over_what_cannot_be_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unanswerable = {**MUSIQUE, "answerable": False}
    (question,) = read_questions(write_lines(tmp_path / "m.jsonl", unanswerable, MUSIQUE))
    assert "passed over 1 questions marked unanswerable" in caplog.text
    assert question.answers == ("Casa Loma", "The Casa Loma")
    assert question.metadata["hops"] == 3
    assert question.metadata["supporting_titles"] == ["Casa Loma", "Paul Kane"]


def test_research_parquet(tmp_path: Path) -> None:
    (question,) = read_questions(write_parquet(tmp_path / "train.bin", RESEARCH))
    assert question.text == "Who wrote Emma?"
    assert question.answers == ("Jane Austen",)
    assert question.id == "musique/2hop__1_2"
    assert question.metadata["dataset"] == "musique"


def test_search_r1_parquet_takes_the_question_out_of_the_prompt(tmp_path: Path) -> None:
    other = {**SEARCH_R1, "data_source": "popqa"}  # its merged file counts each from test_0
    nq, popqa = read_questions(write_parquet(tmp_path / "test.parquet", SEARCH_R1, other))
    assert nq.text == popqa.text == "Who wrote Emma?"
    assert nq.answers == ("Jane Austen",)
    assert (nq.id, popqa.id) == ("nq/test_0", "popqa/test_0")


def test_search_r1_prefers_its_question_column(tmp_path: Path) -> None:
    row = {**SEARCH_R1, "question": "who wrote Emma", "golden_answers": ["not this"]}
    (question,) = read_questions(write_parquet(tmp_path / "test.parquet", row))
    assert question.text == "who wrote Emma"
    assert question.answers == ("Jane Austen",)


def test_all_layouts_agree() -> None:
    rows = [FLASHRAG, RESEARCH, SEARCH_R1, {"question": "Who wrote Emma?", "answer": "x"}]
    assert {question_from_dict(row).text for row in rows} == {"Who wrote Emma?"}


def test_real_flashrag_files(real_data: Path) -> None:
    for name, count in (("hotpotqa", 200), ("2wikimultihopqa", 200), ("musique", 140)):
        questions = read_questions(real_data / f"{name}_small_questions.jsonl")
        assert len(questions) == count
        assert all(q.answers and q.metadata["hops"] >= 2 for q in questions)
        assert all(q.metadata["gold_ids"] and q.metadata["supporting_titles"] for q in questions)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"question": "a", "answer": "b"}\n\n{"question": \n', 3, "JSON"),
        ('{"question": "a", "answer": "b"}\n[1]\n', 2, "object, got list"),
        ('{"id": "x", "question": "a"}\n', 1, "'x' has no answers"),
        ('{"id": "x", "question": "a", "golden_answers": []}\n', 1, "'x' has no answers"),
        ('{"id": "x", "question": "a", "golden_answers": [" "]}\n', 1, "'x' has no answers"),
        ('{"id": "x", "question": "a", "golden_answers": [3]}\n', 1, "must be strings"),
        ('{"id": "x", "asked": "a", "answer": "b"}\n', 1, "fields: ['answer', 'asked', 'id']"),
        ('{"id": "x", "question": "a", "answer": "b"}\n' * 2, 2, "already used in line 1"),
        ('{"id": true, "question": "a", "answer": "b"}\n', 1, "id must be"),
        ('[{"question": "a", "answer": "b"},\n\n{"question": "c"}]', 3, "no answers"),
        ('[{"question": "a", "answer": "b"}\n{"question": "c"}]', 2, "after an item"),
        ('[{"question": "a", "answer": "b"},\n {"question": "c"', 2, "array"),
        ('[{"id":1,"question":"a","answer":"b"},{"id":1,"question":"a","answer":"b"}]', 1, "used"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(QuestionError) as caught:
        read_questions(path)
    assert (caught.value.file, caught.value.line) == (str(path), line)
    assert words in caught.value.reason
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert pickle.loads(pickle.dumps(caught.value)).line == line


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "b"}\n{"question": "caf\xe9", "answer": "b"}\n')
    with pytest.raises(QuestionError, match=r"latin.jsonl:2: must be UTF-8, got byte 0xe9"):
        read_questions(path)


def test_equal_texts_with_different_ids_are_kept_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twin = {**FLASHRAG, "id": "dev_1", "question": "who wrote  EMMA?"}
    path = write_lines(tmp_path / "twins.jsonl", FLASHRAG, twin, {**HOTPOT})
    assert len(read_questions(path)) == 3
    assert "1 questions have the text of another, the first 'dev_1' that of 'dev_0'" in caplog.text
    caplog.clear()
    read_questions(write_lines(tmp_path / "one.jsonl", FLASHRAG, HOTPOT))
    assert not caplog.text


def test_a_table_is_read_and_its_suffix_decides_only_where_content_does_not(
    tmp_path: Path,
) -> None:
    table = tmp_path / "q.csv"
    table.write_text('id,Question,answers\n7,"Who, then?","[""A"", ""B""]"\n', encoding="utf-8")
    (question,) = read_questions(table)
    assert (question.id, question.text, question.answers) == ("7", "Who, then?", ("A", "B"))
    (question,) = read_questions(write_lines(table, FLASHRAG))
    assert question.id == "dev_0"
    table.write_text(json.dumps([FLASHRAG]))
    assert read_questions(table) == [question]


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(QuestionError, match="holds no questions"):
        read_questions(tmp_path / "q.jsonl")


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    for name in (tmp_path / "none.jsonl", "data/none.csv", "data/none.txt"):
        with pytest.raises(QuestionError, match="no such file of questions"):
            read_questions(name)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and nothing more")
    pytest.importorskip("pyarrow")
    with pytest.raises(QuestionError, match="not a readable parquet"):
        read_questions(tmp_path / "cut.parquet")


def test_splits_of_a_folder_and_of_a_file(tmp_path: Path) -> None:
    rows = [{**FLASHRAG, "id": s, "metadata": {"split": s}} for s in ("train", "dev")]
    write_lines(tmp_path / "dev.jsonl", *rows)
    assert len(read_questions(tmp_path, split="dev")) == 2
    assert [q.id for q in read_questions(tmp_path / "dev.jsonl", split="train")] == ["train"]
    with pytest.raises(QuestionError, match=r"no questions of split 'test'.*dev.*train"):
        read_questions(tmp_path / "dev.jsonl", split="test")
    with pytest.raises(QuestionError, match=r"no file of split 'test'.*dev\.jsonl"):
        read_questions(tmp_path, split="test")
    assert read_questions(f"{tmp_path}#dev") == read_questions(tmp_path, split="dev")
    assert [q.id for q in read_questions(f"{tmp_path / 'dev.jsonl'}#train")] == ["train"]
    with pytest.raises(QuestionError, match=r"must be told which split.*#dev'.*dev\.jsonl"):
        read_questions(tmp_path)


def test_the_split_that_a_folder_or_data_set_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("validation", "dev", "val")
    for split in ("dev", "val", "train"):
        write_lines(tmp_path / f"{split}.jsonl", FLASHRAG)
    (tmp_path / "validation.txt").write_text("")
    assert find_split(tmp_path, names) == "dev"
    assert find_split(tmp_path, ("test",)) is None
    for settled in (tmp_path / "dev.jsonl", f"{tmp_path}#train", tmp_path / "nowhere.jsonl"):
        assert find_split(settled, names) is None

    def get_dataset_split_names(name: str, config: str | None) -> list[str]:
        if (name, config) != ("RUC-NLPIR/FlashRAG_datasets", "musique"):
            raise ConnectionError("no network")
        return ["train", "dev"]

    hub = SimpleNamespace(get_dataset_split_names=get_dataset_split_names)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert find_split("RUC-NLPIR/FlashRAG_datasets:musique", names) == "dev"
    assert find_split("RUC-NLPIR/FlashRAG_datasets:musique#train", names) is None
    with pytest.raises(QuestionError, match=r"the Hub does not give it: no network"):
        find_split("no/where", names)


def test_a_name_with_a_mark_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "part#1", FLASHRAG)
    assert len(read_questions(tmp_path / "part#1")) == 1


def test_a_hub_name_asks_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        return [FLASHRAG]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (question,) = read_questions("RUC-NLPIR/FlashRAG_datasets:musique", split="dev")
    assert question.id == "dev_0"
    assert read_questions("RUC-NLPIR/FlashRAG_datasets:musique#dev") == [question]
    assert asked == [("RUC-NLPIR/FlashRAG_datasets", "musique", "dev")] * 2
    with pytest.raises(QuestionError, match="'RUC-NLPIR/FlashRAG_datasets#train'"):
        read_questions("RUC-NLPIR/FlashRAG_datasets")


@pytest.mark.parametrize(("module", "source"), [("datasets", "owner/name"), ("pyarrow", "file")])
def test_a_missing_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str
) -> None:
    if source == "file":
        source = str(write_parquet(tmp_path / "q.parquet", RESEARCH))
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[data\]'"):
        read_questions(source, split="train")


TEXT = st.text(min_size=1).filter(lambda s: s.strip())


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_any_text_survives_a_jsonl_file_and_an_array(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, list[str]]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [
        {"id": str(i), "question": text, "golden_answers": answers}
        for i, (text, answers) in enumerate(items)
    ]
    lines = folder / "q.jsonl"
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    lines.write_bytes(text.encode("utf-8"))
    (folder / "q.json").write_text(json.dumps(rows))
    questions = read_questions(lines)
    assert questions == read_questions(folder / "q.json")
    assert [(q.text, q.answers) for q in questions] == [
        (text.strip(), tuple(dict.fromkeys(answers))) for text, answers in items
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        *("id", "question", "answer", "answers", "golden_answers", "reward_model", "prompt"),
        *("metadata", "supporting_facts", "paragraphs", "extra_info", "answer_aliases"),
    ]
)


@given(st.dictionaries(FIELDS, JSON) | JSON)
def test_any_row_is_a_question_or_a_value_error(row: Any) -> None:
    try:
        question = question_from_dict(row)
    except ValueError:
        return
    assert question.text.strip()
    assert question.answers
    assert all(answer.strip() for answer in question.answers)


def test_a_row_may_say_that_there_is_no_answer() -> None:
    row = {"id": "x", "question": "a", "golden_answers": [], "metadata": {"unanswerable": True}}
    question = question_from_dict(row)
    assert question.answers == UNANSWERABLE
    assert question.metadata["unanswerable"] is True
    with pytest.raises(ValueError, match=r"say so with metadata\.unanswerable"):
        question_from_dict({**row, "metadata": {"unanswerable": "yes"}})

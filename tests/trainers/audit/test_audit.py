"""What an audit says of questions and their corpus, before any training."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles.evaluated import Oracle, arguments, question_file
from doubles.served_model import Scripted
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs import Passage, Question, Retriever
from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index
from research_rl.envs.retrieval.encoders import words
from research_rl.trainers.audit import command, models
from research_rl.trainers.audit.ceiling import ceiling_of, default_folder
from research_rl.trainers.audit.coverage import coverage_of, stands_in, tokens_of
from research_rl.trainers.audit.models import try_model
from research_rl.trainers.audit.overlap import NEAR, overlaps, repeated
from research_rl.trainers.audit.reach import reach_of, sub_questions
from research_rl.trainers.evaluate.command import main as evaluate

PAGES = {
    "g1": '"Kiss and Tell (1945 film)"\nKiss and Tell stars Shirley Temple as Corliss Archer.',
    "g2": '"Shirley Temple"\nShirley Temple became Chief of Protocol.',
    "g3": '"Bruges"\nBruges lies in Belgium.',
    "g4": '"Ghent"\nGhent lies in Belgium.',
    "g5": '"東京"\n日本の首都は東京である。',
    "g6": '"Alone"\nZanzibar hides in here.',
    **{f"f{i}": f'"Filler {i}"\nwoman film portrayed position held {i}' for i in range(30)},
}
ROWS: list[dict[str, Any]] = [
    {
        "id": "bridge",
        "question": "What position was held by the woman who was Corliss Archer in Kiss and Tell?",
        "answers": ["Chief of Protocol"],
        "gold_ids": ["g1", "g2"],
    },
    {"id": "both", "question": "Are Bruges and Ghent in one country?", "answers": ["yes"]}
    | {"gold_ids": ["g3", "g4"]},
    {"id": "yes without", "question": "Are Lima and Quito in Peru?", "answers": ["no"]}
    | {"gold_ids": ["g3", "elsewhere"]},
    {"id": "tokyo", "question": "日本の首都はどこですか", "answers": ["東京"], "gold_ids": ["g5"]},
    {"id": "far", "question": "Where did the unnamed traveller go?", "answers": ["Zanzibar"]}
    | {"gold_ids": ["g6"]},
    {"id": "nowhere", "question": "Who invented glass?", "answers": ["Nobody Knows"]},
    {"id": "copy", "question": "who invented  GLASS?", "answers": ["protocol"]},
]
TRAIN: list[dict[str, Any]] = [
    {"id": "t1", "question": "Are Bruges and Ghent in the one country?", "answers": ["yes"]},
    {"id": "t2", "question": "日本の首都はどこですか", "answers": ["東京"]},
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    pytest.importorskip("faiss")
    rows = [{"id": i, "contents": c} for i, c in PAGES.items()]
    return build_index(write(tmp_path / "c.jsonl", rows), tmp_path / "i", dim=512)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "dev.jsonl", ROWS)


def audit(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, dict[str, Any]]:
    command.main(["audit", *map(str, args)])
    out = capsys.readouterr().out
    record = json.loads(Path(out.strip().rpartition(" and ")[2]).read_text())
    return out, record


def test_the_card_the_filtered_file_and_the_numbers(
    questions: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "train.jsonl", TRAIN)
    out, record = audit(
        capsys, "--questions", questions, "--index", index, "--train", train, "--top-k", 2
    )
    assert out.startswith(f"# Audit of {questions}")
    assert "**Ceiling: 71.4 %.**" in out  # 5 of 7: "nowhere" and "yes without" are missing
    numbers = record["numbers"]
    assert record["missing"] == ["yes without", "nowhere"]
    assert numbers["ceiling"] == pytest.approx(5 / 7, abs=1e-4)
    assert numbers["answer_in_corpus"] == 0.8
    assert numbers["gold_in_corpus"] == 0.9
    assert numbers["copies"] == 1
    assert numbers["train"] == {"questions": 2, "same": 1, "near": 1, "near_with_its_answer": 0}
    kept = {
        q.id: q.metadata["audit"] for q in read_questions(tmp_path / "dev.audit/questions.jsonl")
    }
    assert set(kept) == {"bridge", "both", "far"}
    assert kept["bridge"]["bucket"] == "oracle"
    assert kept["bridge"]["gold"] == {"in_corpus": 2, "by_question": 1, "by_oracle": 2, "of": 2}
    assert kept["both"]["bucket"] == "one search"
    assert kept["far"]["bucket"] == "in corpus"
    assert record["dropped"] == {
        "not in the corpus": 2,
        "in the training questions": 1,
        "asked before": 1,
    }
    assert sum(record["buckets"].values()) == len(ROWS)


def test_unanswerable_questions_are_not_searched_for(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = {"answers": [], "metadata": {"unanswerable": True}}
    rows = [
        *ROWS[:6],
        {"id": "none", "question": "Who is the unknown mayor of Bruges?", **none},
        {"id": "none either", "question": "Who leads Ghent?", **none},
    ]
    with_them = write(tmp_path / "with.jsonl", rows)
    out, record = audit(capsys, "--questions", with_them, "--index", index)
    _, without = audit(
        capsys, "--questions", write(tmp_path / "without.jsonl", rows[:6]), "--index", index
    )
    assert record["missing"] == without["missing"]
    assert record["numbers"]["ceiling"] == pytest.approx(6 / 8)
    for name in ("answer_in_corpus", "answer_by_question", "answer_by_oracle", "yes_or_no"):
        assert record["numbers"][name] == without["numbers"][name]
    assert record["numbers"]["answer_in_question"] == 0.0, "the word unknown is no answer"
    assert record["buckets"] == without["buckets"] | {"unanswerable": 2}
    kept = {q.id for q in read_questions(tmp_path / "with.audit" / "questions.jsonl")}
    assert {"none", "none either"} <= kept
    assert "8 questions (2 with yes or no, 2 unanswerable)" in out


def test_what_cannot_be_is_said(questions: Path, index: Path, tmp_path: Path) -> None:
    for more, said in (
        (["--top-k", "0"], "--top-k must be at least 1, got 0"),
        (["--samples", "3"], "--samples must come with --model"),
        (["--server", "http://x"], "--server must come with --model"),
    ):
        with pytest.raises(ValueError, match=said):
            command.main(["audit", "--questions", str(questions), "--index", str(index), *more])
    with pytest.raises(ValueError, match="research index build"):
        command.main(["audit", "--questions", str(questions), "--index", str(tmp_path / "none")])


def test_a_split_of_a_file_is_audited_beside_the_other(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"metadata": {"split": "dev"}} for row in ROWS[:2]]
    rows += [row | {"metadata": {"split": "train"}} for row in TRAIN]
    file = write(tmp_path / "all.jsonl", rows)
    _, record = audit(
        capsys, "--questions", f"{file}#dev", "--train", f"{file}#train", "--index", index
    )
    assert record["numbers"]["questions"] == 2
    assert record["numbers"]["train"]["questions"] == 2
    assert (tmp_path / "all.dev.audit" / "card.md").is_file()
    assert default_folder("owner/name:config#dev") is None


def test_the_ceiling_is_found_again_for_these_questions_and_this_corpus(
    questions: Path,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    audit(capsys, "--questions", questions, "--index", index)
    place, whole = str(index), read_questions(questions)
    assert ceiling_of(questions, whole, whole, place) == pytest.approx(5 / 7)
    assert ceiling_of(questions, whole, whole[:4], place) == pytest.approx(3 / 4)
    filtered = tmp_path / "dev.audit" / "questions.jsonl"
    kept = read_questions(filtered)
    assert ceiling_of(filtered, kept, kept, place) == 1.0
    assert ceiling_of(tmp_path / "other.jsonl", whole, whole, place) is None
    assert "audit" not in caplog.text.replace("dev.audit", "")
    caplog.clear()
    caplog.set_level(logging.WARNING)
    another = write(tmp_path / "another.jsonl", [{"id": "g", "contents": "a\nb"}])
    another = build_index(another, tmp_path / "j", dim=512)
    assert ceiling_of(questions, whole, whole, str(another)) is None
    assert ceiling_of(questions, whole[1:], whole, place) is None
    assert ceiling_of(questions, whole, whole, _Nothing()) is None
    assert "over another corpus" in caplog.text
    assert "of other questions" in caplog.text
    assert "what is searched is none" in caplog.text


def test_two_files_of_one_beginning_have_folders_of_their_own(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(index)
    train, dev = write(tmp_path / "nq.train.jsonl", TRAIN), write(tmp_path / "nq.dev.jsonl", ROWS)
    for file in (train, dev):
        audit(capsys, "--questions", file, "--index", index)
    assert (tmp_path / "nq.train.audit" / "card.md").read_text().startswith(f"# Audit of {train}")
    (tmp_path / "nq.dev.audit").rename(tmp_path / "nq.audit")  # where an older version put it
    whole = read_questions(dev)
    assert ceiling_of(dev, whole, whole, place) == pytest.approx(5 / 7), "it is still found"
    for made, name in (("a.jsonl.gz", "a"), ("b.1.CSV", "b.1"), ("v1.0", "v1.0"), (".json", "")):
        (tmp_path / made).touch()
        assert default_folder(tmp_path / made) == tmp_path / f"{name or made}.audit"


def test_the_audit_of_another_file_is_not_written_over(
    questions: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit(capsys, "--questions", questions, "--index", index)
    other, out = write(tmp_path / "other.jsonl", ROWS), tmp_path / "dev.audit"
    before = (out / "questions.jsonl").read_bytes()
    args = ["audit", "--index", str(index), "--out"]
    with pytest.raises(FileExistsError, match=r"got that of .*dev\.jsonl .* --out another folder"):
        command.main([*args, str(out), "--questions", str(other)])
    with pytest.raises(FileExistsError, match=r"questions\.jsonl can be written"):
        command.main([*args, str(out), "--questions", str(out / "questions.jsonl")])
    assert (out / "questions.jsonl").read_bytes() == before
    record = json.loads((out / "audit.json").read_text())
    del record["questions"]["source"]  # an audit that does not say of what it was made
    (out / "audit.json").write_text(json.dumps(record))
    audit(capsys, "--questions", other, "--index", index, "--out", out)


def test_the_ceiling_of_a_split_of_a_folder_is_found(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    file = write(tmp_path / "data" / "dev.jsonl", ROWS)
    audit(capsys, "--questions", file, "--index", index)
    whole = read_questions(file)
    place = f"{tmp_path / 'data'}#dev"
    assert ceiling_of(place, whole, whole, str(index)) == pytest.approx(5 / 7)


def test_oracle_queries_ask_for_what_is_named_and_for_sub_questions() -> None:
    asked: list[str] = []

    class Notes(Retriever):
        def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
            asked.extend(queries)
            return [
                [Passage(i, c) for i, c in PAGES.items() if query in c.partition("\n")[0]][:k]
                for query in queries
            ]

    corpus = [Passage(i, c) for i, c in PAGES.items()]
    steps = [
        {"question": "film >> star", "answer": "Shirley Temple"},
        {"question": "What did #1 become?", "answer": "Chief of Protocol"},
    ]
    bridge = Question("q", "Who starred in Kiss and Tell?", ("Chief of Protocol",))
    bridge = Question(
        "q",
        bridge.text,
        bridge.answers,
        {"gold_ids": ["g1", "g2"], "question_decomposition": steps},
    )
    coverage = coverage_of([bridge], corpus)
    for rounds, reached in ((1, False), (2, False), (3, True)):
        asked.clear()
        reach = reach_of([bridge], coverage, corpus, Notes(), 2, rounds)
        assert reach.by_oracle["q"].answer is reached
        assert not reach.by_question["q"].gold
    assert asked == [
        "Who starred in Kiss and Tell?",
        "film star",
        "What did Shirley Temple become?",
        "Kiss and Tell (1945 film)",
        "Shirley Temple",  # named by what was found
    ]
    own = [{"question": "What was Tokyo?", "answers": ["edo"]}, {"question": "#3 or #1?"}]
    assert list(sub_questions({"decomposition": own})) == ["What was Tokyo?", "#3 or edo?"]


def test_answers_are_looked_for_as_readers_write_them() -> None:
    text = tokens_of("He said: “St. Louis – the city” (pop. 1,500).")
    assert stands_in(tokens_of("St Louis"), text)
    assert stands_in(tokens_of("1500"), text)
    assert not stands_in(tokens_of("Lou"), text)
    assert stands_in(tokens_of("東京"), tokens_of("日本の首都は東京である"))
    assert stands_in(tokens_of("ＣＡＦＥ\u0301"), tokens_of("in a café here"))
    question = Question("q", "Which?", ("The The", "yes"))
    assert coverage_of([question], [Passage("1", "yes the the")]).answers["q"] is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text("abcd ", max_size=12), max_size=6),
    st.lists(st.lists(st.sampled_from(["a", "b", "c d", "d"]), max_size=5), max_size=5),
)
def test_the_streaming_search_finds_what_a_plain_one_finds(
    answers: list[str], pages: list[list[str]]
) -> None:
    questions = [Question(str(n), "?", (answer,)) for n, answer in enumerate(answers)]
    texts = [" ".join(page) for page in pages]
    found = coverage_of(questions, [Passage(str(i), text) for i, text in enumerate(texts)]).answers
    for question in questions:
        wanted = tokens_of(question.answers[0])
        plain = any(stands_in(wanted, tokens_of(text)) for text in texts) if wanted else None
        assert found[question.id] is plain


def test_near_questions_are_those_that_all_pairs_would_give() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(12)]
    made = [
        Question(str(i), " ".join(rng.sample(vocabulary, rng.randint(3, 9))), (rng.choice("ab"),))
        for i in range(150)
    ]
    seen, asked = made[:100], made[100:]
    found = overlaps(asked, seen)
    for question in asked:
        own = set(words(question.text))
        likeness = max(len(own & set(words(o.text))) / len(own | set(words(o.text))) for o in seen)
        assert (question.id in found) is (likeness >= NEAR)
        if question.id in found:
            assert found[question.id].likeness == pytest.approx(likeness)
    assert not repeated(seen[:1])


def test_a_model_is_asked_from_memory_and_with_searches(
    index: Path, questions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def say(prompt: Any) -> str:
        text = str(prompt)
        if "<think>" not in text:  # from memory
            return "It is \\boxed{Zanzibar}." if "traveller" in text else "I do not know"
        return "<think> x </think><answer> \\boxed{Chief of Protocol} </answer>"

    asked = read_questions(questions)
    tried = try_model("m", Scripted(say), asked, _Nothing(), samples=2)
    assert [i for i, right in tried.closed_book.items() if right] == ["far"]
    assert tried.right["bridge"] == 2
    assert (tried.pass_at_k, tried.mixed) == (pytest.approx(1 / 7), 0.0)
    monkeypatch.setattr(
        "research_rl.agents.methods.OpenAIGenerator", lambda url, model: Scripted(say)
    )
    args = ("--questions", questions, "--index", index, "--model", "m", "--server", "http://x")
    out, record = audit(capsys, *args, "--samples", 2)
    assert record["numbers"]["model"] == {
        **{"name": "m", "closed_book": 0.1429, "errors": 0, "samples": 2},
        **{"pass@1": 0.1429, "pass@k": 0.1429, "mixed": 0.0},
    }
    assert "pass@1 14.3 %, pass@2 14.3 %" in out
    kept = {
        q.id: q.metadata["audit"]
        for q in read_questions(questions.parent / "dev.audit/questions.jsonl")
    }
    assert kept["bridge"]["pass"] == [2, 2]
    assert kept["far"]["closed_book"] is True
    assert models.NaiveGeneration is not None


class _Nothing(Retriever):
    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [[] for _ in queries]


def test_the_ceiling_stands_beside_em_in_a_later_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Oracle, "asked", [])
    pytest.importorskip("faiss")
    houses = question_file(tmp_path)
    rows = [
        {"id": f"p{i}", "contents": f"house {i}\nIt is Owner {i} who owns it"} for i in range(15)
    ]
    index = build_index(write(tmp_path / "c.jsonl", rows), tmp_path / "i", dim=512)
    evaluate([*arguments(tmp_path / "before", houses), "--index", str(index)])
    assert "ceiling" not in (tmp_path / "before" / "card.md").read_text()
    audit(capsys, "--questions", houses, "--index", index)
    evaluate([*arguments(tmp_path / "after", houses), "--index", str(index), "--limit", "18"])
    card = (tmp_path / "after" / "card.md").read_text()
    assert "| EM, % | EM's ceiling, % | F1, % |" in card
    assert "| ReSearch | 18 | 94.4 [83.3, 100.0] | 83.3 |" in card
    page = re.sub(r" class=.number.|\s+", " ", (tmp_path / "after" / "report.html").read_text())
    assert "<th >EM, %</th><th >EM&#39;s ceiling, %</th><th >F1, %</th>" in page
    assert "<td >94.4 <small>[83.3, 100.0]</small></td> <td >83.3</td>" in page
    assert "ceiling" not in (tmp_path / "before" / "report.html").read_text()
    evaluate(arguments(tmp_path / "other", houses))  # a retriever that names no corpus
    assert "ceiling" not in (tmp_path / "other" / "card.md").read_text()

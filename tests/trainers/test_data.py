"""Batches of questions: seeded, sharded, resumable, and clear about what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl

from research_rl.envs.questions import QuestionError
from research_rl.envs.retrieval import load_retriever
from research_rl.envs.types import Question
from research_rl.trainers.data import QuestionDataModule, QuestionLoader, WorldConfig
from research_rl.trainers.settings.options import EnvConfig

QUESTIONS = [Question(str(i), f"Who is {i}?", (str(i),)) for i in range(10)]


def ids(loader: QuestionLoader) -> list[list[str]]:
    return [[question.id for question in batch] for batch in loader]


def write(path: Path, n: int) -> str:
    rows = ({"id": str(i), "question": f"Q{i}?", "golden_answers": ["a"]} for i in range(n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_training_shuffles_each_pass_and_drops_the_rest() -> None:
    loader = QuestionLoader(QUESTIONS, 3, seed=1)
    first, second = ids(loader), ids(loader)
    assert len(loader) == len(first) == len(second) == 3
    assert first != second
    assert len({i for batch in first for i in batch}) == 9
    assert ids(QuestionLoader(QUESTIONS, 3, seed=1)) == first
    assert ids(QuestionLoader(QUESTIONS, 3, seed=2)) != first


def test_evaluation_keeps_every_question_in_order() -> None:
    loader = QuestionLoader(QUESTIONS, 4)
    assert len(loader) == 3
    assert [i for batch in ids(loader) for i in batch] == [str(i) for i in range(10)]
    assert ids(loader) == ids(loader)


@pytest.mark.parametrize("served", range(7))
def test_a_restored_loader_serves_the_next_question(served: int) -> None:
    whole = QuestionLoader(QUESTIONS, 3, seed=1)
    straight = ids(whole) + ids(whole) + ids(whole)
    stopped = QuestionLoader(QUESTIONS, 3, seed=1)
    batches = iter(stopped)
    for _ in range(served):
        try:
            next(batches)
        except StopIteration:
            batches = iter(stopped)
            next(batches)
    resumed = QuestionLoader(QUESTIONS, 3, seed=1)
    resumed.load_state_dict(stopped.state_dict())
    assert (ids(resumed) + ids(resumed) + ids(resumed))[: 9 - served] == straight[served:]


@pytest.mark.parametrize(("size", "left"), [(1, 4), (2, 2), (3, 1), (4, 1), (5, 0), (10, 0)])
def test_a_restored_loader_may_have_another_batch_size(size: int, left: int) -> None:
    stopped = QuestionLoader(QUESTIONS, 3, seed=1)
    batches = iter(stopped)
    seen = [question.id for _ in range(2) for question in next(batches)]
    resumed = QuestionLoader(QUESTIONS, size, seed=1)
    resumed.load_state_dict(stopped.state_dict())
    found = ids(resumed)
    if left:  # the rest of the pass
        assert len(found) == left
        assert not {i for batch in found for i in batch} & set(seen)
        found = ids(resumed)
    assert len(found) == len(resumed)


def test_an_evaluation_that_was_cut_short_begins_anew() -> None:
    loader = QuestionLoader(QUESTIONS, 4)
    assert [question.id for question in next(iter(loader))] == ["0", "1", "2", "3"]
    assert [question.id for question in next(iter(loader))] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("seed", [None, 1])
def test_ranks_share_a_batch_without_overlap(seed: int | None) -> None:
    whole = ids(QuestionLoader(QUESTIONS, 4, seed))
    shares = [ids(QuestionLoader(QUESTIONS, 4, seed, rank, 2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for batch, left, right in zip(whole, *shares, strict=True):
        assert sorted(left + right) == sorted(batch)


def test_a_rank_may_get_nothing_of_a_small_batch() -> None:
    assert ids(QuestionLoader(QUESTIONS[:5], 4, None, rank=1, world_size=2)) == [["1", "3"], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": []}, "at least one question"),
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"batch_size": 11, "seed": 1}, "at most the number of training questions 10, got 11"),
        ({"batch_size": 3, "seed": 1, "world_size": 2}, "multiple of the number of ranks 2"),
    ],
)
def test_impossible_batches_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuestionLoader(**{"questions": QUESTIONS, "batch_size": 4, **arguments})  # type: ignore[arg-type]


def test_batches_that_cannot_be_made_are_refused_before_a_warm_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size must be at least 1, got 0; set --data"):
        QuestionDataModule(batch_size=0)
    file = write(tmp_path / "train.jsonl", 3)
    with pytest.raises(ValueError, match="at most the number of training questions 3, got 4"):
        QuestionDataModule(file, file, batch_size=4).setup("fit")


@pytest.mark.parametrize("index", [None, "world/index", "my-index"])
def test_an_index_of_one_s_own_is_not_taken_for_the_world_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, index: str | None
) -> None:
    file = write(tmp_path / "train.jsonl", 3)
    data = QuestionDataModule(file, file, file, batch_size=1, world=WorldConfig("world"))
    module = SimpleNamespace(env_config=EnvConfig(index=index))
    data.trainer = SimpleNamespace(lightning_module=module, world_size=1)  # type: ignore[assignment]
    data.setup("fit")
    assert ("may hold none of their facts" in caplog.text) is (index != "my-index")


def test_roles_and_limits(tmp_path: Path) -> None:
    train, val = write(tmp_path / "train.jsonl", 8), write(tmp_path / "val.jsonl", 6)
    data = QuestionDataModule(train, val, val, 4, val_batch_size=4, limit_val=5, limit_test=2)
    assert len(data.train_dataloader()) == 2
    val_loader = data.val_dataloader()
    assert isinstance(val_loader, QuestionLoader)
    assert [len(batch) for batch in val_loader] == [4, 1]
    assert [len(batch) for batch in data.test_dataloader()] == [2]
    assert [len(batch) for batch in data.predict_dataloader()] == [2]


@pytest.mark.parametrize("name", ["validation", "dev", "val"])
def test_a_folder_gives_each_role_its_split(tmp_path: Path, name: str) -> None:
    for split, n in (("train", 8), (name, 5), ("test", 3)):
        write(tmp_path / f"{split}.jsonl", n)
    folder = str(tmp_path)
    data = QuestionDataModule(folder, folder, folder)
    assert [len(data.questions(role)) for role in ("train", "val", "test")] == [8, 5, 3]
    assert len(QuestionDataModule(train=f"{folder}#test").questions("train")) == 3
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(QuestionError, match=r"must be told which split: .*#.*train\.jsonl"):
        data.questions("test")


def test_missing_empty_and_unnamed_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="no such file"):
        QuestionDataModule(train=str(tmp_path / "gone.jsonl")).train_dataloader()
    with pytest.raises(ValueError, match="question"):
        QuestionDataModule(train=write(tmp_path / "empty.jsonl", 0)).train_dataloader()
    with pytest.raises(ValueError, match=r"data\.train must name a question file"):
        QuestionDataModule().train_dataloader()
    with pytest.raises(ValueError, match="limit_train must be at least 1, got 0"):
        QuestionDataModule(write(tmp_path / "t.jsonl", 3), limit_train=0).train_dataloader()
    assert QuestionDataModule().val_dataloader() == []


def test_the_world_is_written_once_and_read_back(tmp_path: Path) -> None:
    world = WorldConfig(str(tmp_path / "world"), 100, num_train=10, num_val=3, num_test=4)
    data = QuestionDataModule(batch_size=5, world=world)
    data.prepare_data()
    stamp = (tmp_path / "world/train.jsonl").stat().st_mtime_ns
    data.prepare_data()
    assert (tmp_path / "world/train.jsonl").stat().st_mtime_ns == stamp
    hops = [question.metadata["hops"] for question in data.questions("train")]
    assert (hops.count(1), hops.count(2)) == (2, 8)
    held_out = data.questions("val")
    assert [q.metadata["hops"] for q in held_out].count(1) == 3
    assert len(held_out) == 6
    assert len(data.questions("test")) == 8
    chain = held_out[0].metadata["chain"]
    found = load_retriever(tmp_path / "world/index").search([chain[0]], 1)[0][0]
    assert found.id == held_out[0].metadata["gold_ids"][0]


def test_only_the_world_in_the_run_s_folder_is_written_anew(tmp_path: Path) -> None:
    sizes = {"num_people": 60, "num_train": 5, "num_val": 2, "num_test": 2}
    run, shared = tmp_path / "run", tmp_path / "shared"
    for folder in (run / "world", shared):
        WorldConfig(str(folder), **sizes).write(str(run))  # type: ignore[arg-type]
    WorldConfig(str(run / "world"), seed=1, **sizes).write(str(run))  # type: ignore[arg-type]
    for root in (str(run), None):
        with pytest.raises(FileExistsError, match=r"\(seed 1\), got one of other settings"):
            WorldConfig(str(shared), seed=1, **sizes).write(root)  # type: ignore[arg-type]
    WorldConfig(str(run / "world"), seed=1, **sizes).check()  # type: ignore[arg-type]


def test_lightning_saves_how_far_the_loader_is() -> None:
    loader = QuestionLoader(QUESTIONS, 5, seed=0)
    combined = pl.utilities.combined_loader.CombinedLoader(loader)
    next(iter(combined))
    assert combined._state_dicts() == [{"passes": 0, "served": 5}]

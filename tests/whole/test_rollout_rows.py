"""The files that rollouts are written to: each keeps its columns and their order."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from doubles.sample_rollouts import rollout

from research_rl.agents.types import Rollout
from research_rl.trainers.measures import prediction_row
from research_rl.trainers.recorder.records import Records, record_of
from research_rl.trainers.viewer.folder import RolloutFiles


def words(text: str) -> list[str]:
    return text.split()


def test_rollouts_jsonl_is_read_again_as_text(tmp_path: Path) -> None:
    one = rollout()
    RolloutFiles(tmp_path).write("train", 7, [one], [0.5])
    row = json.loads((tmp_path / "rollouts.jsonl").read_text("utf-8"))
    assert list(row) == words(
        "split step question_id question answers hops turns results queries passage_ids "
        "prediction reward f1 em format_error advantage finish_reason metadata"
    )
    assert (row["split"], row["step"], row["hops"], row["advantage"]) == ("train", 7, 1, 0.5)
    again = Rollout.from_row(row)
    assert (again.turns, again.results, again.reward) == (one.turns, one.results, one.reward)
    with pytest.raises(ValueError, match="got text alone"):
        _ = again.sequence.response_ids


def test_predictions_keep_their_columns() -> None:
    assert list(prediction_row(rollout())) == words(
        "id question prediction answers em f1 searches finish_reason text"
    )


def test_records_keep_their_columns(tmp_path: Path) -> None:
    path = Records(tmp_path).write(3, 3, [record_of(rollout(), 0.5)])
    row = json.loads(gzip.decompress(path.read_bytes()).splitlines()[1])
    assert list(row) == words(
        "question seed prompt_ids response_ids sampled logprobs turns queries passage_ids reward "
        "advantage finish_reason"
    )
    assert list(row["question"]) == words("id text answers metadata")
    assert list(row["reward"]) == words("value f1 em format_error prediction")
    assert row["sampled"] == [1, 1, 1, 0, 0, 1, 1]
    assert row["logprobs"] == [-0.5, -0.5, -0.5, -0.1, -0.1], "of what the policy wrote"

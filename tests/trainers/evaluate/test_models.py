"""Models of an evaluation are known by what is in their files, wherever and whenever these lie."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from doubles import tiny, wordy
from doubles.evaluated import question_file

from research_rl.envs.system import digest_stamp
from research_rl.trainers.evaluate.command import main
from research_rl.trainers.evaluate.config import ModelConfig
from research_rl.trainers.evaluate.measures import Cell
from research_rl.trainers.evaluate.models import model_identity, time_stamp
from research_rl.trainers.evaluate.settings import EvaluationSettings


def run_with(folder: Path, weights: bytes) -> Path:
    """Make a run whose checkpoint, a whole zip file, holds these weights."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data"), weights)
    return folder


def identity_of(run: Path) -> object:
    return model_identity(ModelConfig(run=str(run), checkpoint="last"))


def test_a_copy_of_a_run_is_the_same_model_and_other_weights_are_another(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", b"0123")
    copied = shutil.copytree(run, tmp_path / "copied")
    os.utime(copied / "checkpoints" / "last.ckpt", ns=(1, 1))
    assert identity_of(copied) == identity_of(run)
    assert identity_of(run_with(tmp_path / "other", b"0124")) != identity_of(run)


def test_a_model_that_is_replaced_under_its_name_is_another(tmp_path: Path) -> None:
    weights, config = tmp_path / "model.safetensors", ModelConfig(model=str(tmp_path))
    weights.write_bytes(b"first")
    before, stamp = model_identity(config), weights.stat()
    weights.write_bytes(b"other")
    for time in (stamp.st_mtime_ns, 1):  # of the same size, and once of the same time
        os.utime(weights, ns=(stamp.st_atime_ns, time))
        assert model_identity(config) != before
    weights.write_bytes(b"first")
    assert model_identity(config) == before


def test_the_base_of_an_adapter_belongs_to_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for lora, differs in (("{r: 2}", True), ("null", False)):
        run = run_with(tmp_path / f"run{differs}", b"0123")
        config = ModelConfig(run=str(run), checkpoint="last")
        (run / "config.yaml").write_text(f"model: {{policy: {{model: {base}, lora: {lora}}}}}")
        (base / "model.safetensors").write_bytes(b"first")
        before, former = model_identity(config), model_identity(config, digest_stamp)
        assert ("base" in before) is differs
        assert "base" not in former, "as it was written before"
        (base / "model.safetensors").write_bytes(b"other")
        assert (model_identity(config) != before) is differs


def test_weights_of_the_older_format_count_too(tmp_path: Path) -> None:
    weights, config = tmp_path / "pytorch_model.bin", ModelConfig(model=str(tmp_path))
    weights.write_bytes(b"first")
    before, former = model_identity(config), model_identity(config, digest_stamp)
    weights.write_bytes(b"other")
    assert model_identity(config) != before
    assert former["files"] == [], "as it was written before they counted"
    (tmp_path / "model.safetensors").write_bytes(b"first")
    assert model_identity(config) == model_identity(config, digest_stamp), "they are not loaded"


def test_a_sharded_checkpoint_is_known_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the files hold is looked at elsewhere
    monkeypatch.setattr("research_rl.trainers.checkpoint.files.check_shards", lambda folder: None)
    names = []
    for name in ("a", "b"):
        folder = tmp_path / name / "checkpoints" / "last.ckpt"
        folder.mkdir(parents=True)
        for file, content in ((".metadata", "m"), ("meta.pt", "x"), ("shard.distcp", name)):
            (folder / file).write_text(content)
        names.append(model_identity(ModelConfig(run=str(tmp_path / name), checkpoint=str(folder))))
    again = shutil.copytree(tmp_path / "a", tmp_path / "again") / "checkpoints" / "last.ckpt"
    copied = model_identity(ModelConfig(run=str(tmp_path / "again"), checkpoint=str(again)))
    assert names[0] == copied != names[1]


def test_rows_that_were_kept_with_times_are_gone_on_with_while_these_hold(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", b"0123")
    config, cell = ModelConfig(run=str(run), checkpoint="last"), Cell("d", "m", "x")
    kept = {"model": model_identity(config, time_stamp)}
    (tmp_path / "settings.json").write_text(json.dumps({"cells": {json.dumps([*cell]): kept}}))
    settings = EvaluationSettings(tmp_path)

    def check() -> None:
        now = {"model": model_identity(config)}
        settings.check(cell, now, lambda: {"model": model_identity(config, time_stamp)})

    check()
    os.utime(run / "checkpoints" / "last.ckpt", ns=(1, 1))
    with pytest.raises(ValueError, match=r"model\.checkpoint was .*give --out another folder"):
        check()


def test_words_that_a_model_cannot_read_are_told_once_a_data_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wordy.policy().save_pretrained(tmp_path / "words")
    tiny.checkpoint(tmp_path / "bytes")
    small = {"init_args": {"max_response_tokens": 8}}
    models = {
        name: {"model": str(tmp_path / name), "prompt": "{prompt}"} for name in ("words", "bytes")
    }
    config = {
        "datasets": {"houses": {"questions": str(question_file(tmp_path, 3))}},
        "models": models,
        "methods": {n: {"class_path": "ReSearch", **small} for n in ("ReSearch", "Other")},
        "index": {"class_path": "doubles.toy_world.Echo"},
        "out": str(tmp_path / "out"),
        "resamples": 100,
    }
    main(["--config", json.dumps(config)])
    (said,) = [one for one in caplog.messages if "have words that" in one]
    assert said.startswith("houses, asked of words: 3 of 3 questions (100%) have")

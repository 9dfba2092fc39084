"""Bad input ends with one line that says what is wrong and what to do, and with status 2."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.tiny_run import write_config, write_questions
from transformers import AutoTokenizer, GenerationConfig

from research_rl.envs.synthetic.world import builtin_world
from research_rl.envs.system import commands as command_line
from research_rl.trainers.cli import dispatch as cli


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def refused(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs ``research fit`` with more arguments and returns its only line of complaint."""
    monkeypatch.chdir(tmp_path)

    def run(*args: Any, command: str = "fit") -> str:
        given = [command, "--config", config, *args]
        monkeypatch.setattr(sys, "argv", ["research", *map(str, given)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == command_line.FAILED
        err = capsys.readouterr().err
        assert "Traceback" not in err
        (line,) = [x for x in err.splitlines() if x.startswith("research: error: ")]
        assert err.splitlines()[-1] == line, "the reason stands last"
        return line

    return run


def corpus(file: Path, facts: int) -> Path:
    rows = ({"id": str(i), "contents": f"fact {i}\nthis is fact {i}"} for i in range(facts))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of a small corpus, made by the command."""
    passages = corpus(tmp_path / "corpus.jsonl", 4)
    given = ["index", "build", "--corpus", passages, "--out", tmp_path / "index", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["research", *map(str, given)])
    cli.main()
    return passages


def test_missing_index(refused: Any) -> None:
    line = refused("--model.env.index", "nowhere")
    assert "nowhere does not exist" in line
    assert "research index build --corpus CORPUS.jsonl --out nowhere" in line


def test_a_folder_that_is_no_index(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is no index" in refused("--model.env.index", "empty")


def test_corpus_and_index_that_do_not_belong_together(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = build(tmp_path, monkeypatch)
    corpus(passages, 5)
    line = refused("--model.env.index", tmp_path / "index")
    assert "do not belong together" in line
    assert "build it again: research index build" in line


def test_empty_question_file(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    line = refused("--data.train", "none.jsonl")
    assert "none.jsonl" in line
    assert "no questions" in line


def test_missing_question_file(refused: Any) -> None:
    assert "nowhere.jsonl" in refused("--data.train", "nowhere.jsonl")


def test_question_without_answers(refused: Any, tmp_path: Path) -> None:
    good = write_questions(tmp_path / "q.jsonl", builtin_world()[0][:2]).read_text()
    bad = json.dumps({"id": "q7", "question": "Who ?", "golden_answers": []})
    (tmp_path / "q.jsonl").write_text(good + bad + "\n")
    line = refused("--data.train", "q.jsonl")
    assert "q7" in line
    assert "q.jsonl" in line
    assert "3" in line
    assert "no answers" in line


@pytest.mark.parametrize("name", ["GRP0", "my_rules.Nothing", "torch.nn.Linear"])
def test_unknown_algorithm(name: str, refused: Any) -> None:
    line = refused("--model.algorithm", name)
    assert "model.algorithm" in line
    assert name.rpartition(".")[2] in line or "my_rules" in line
    if name != "my_rules.Nothing":
        assert "GRPO" in line
        assert "my_file.MyClass" in line


def test_prompt_without_its_place(refused: Any) -> None:
    line = refused("--model.env.prompt", "Answer at once.")
    assert "{prompt}" in line


def test_model_without_an_eos(refused: Any, config: Path, tmp_path: Path) -> None:
    source = config.parent / "policy"
    folder = tmp_path / "endless"
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    model_config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**model_config, "eos_token_id": None}))
    GenerationConfig(eos_token_id=None).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    line = refused("--model.policy.model", folder)
    assert "end-of-sequence" in line
    assert "generation_config.json" in line


def test_missing_model(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no/such-model" in refused("--model.policy.model", "no/such-model")


def test_no_room_for_a_checkpoint(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save
    saved = 0

    def full_after_two(*args: Any, **kwargs: Any) -> None:
        nonlocal saved
        saved += 1
        if saved > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full_after_two)
    line = refused()
    assert "No space left on device" in line
    assert "--ckpt_path last" in line
    folder = tmp_path / "runs/tiny/checkpoints"
    assert not list(folder.glob(".*"))
    for file in folder.glob("*.ckpt"):  # whole, every one
        assert torch.load(file, weights_only=True)["global_step"] == 1
    assert list(folder.glob("last.ckpt"))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model.algorithm.init_args.clip_low", -1, "clip_low must be positive"),
        ("--model.updates.group_size", 1, "group_size"),
        ("--model.sampling.temperature", -1, "temperature"),
        ("--model.env.reward", "papr", "paper"),
        ("--model.env.top_k", 0, "top_k"),
        ("--data.batch_size", 0, "batch_size"),
        ("--data.batch_size", 100, "batch_size must be at most the number of training questions 6"),
    ],
)
def test_values_out_of_range(option: str, value: Any, said: str, refused: Any) -> None:
    assert said in refused(option, value)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_that_is_not_there(command: str, refused: Any) -> None:
    line = refused("--ckpt_path", "last", command=command)
    assert "`research fit` writes it at its first validation" in line

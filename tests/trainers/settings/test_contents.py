"""Settings know what lies at a path: moved it is the same, and replaced it is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from research_rl.envs.retrieval import build_index
from research_rl.trainers.settings import weight_files, with_contents


def index_at(folder: Path, text: str = "Oslo is a city.", kind: str = "bm25") -> str:
    folder.mkdir()
    corpus = folder / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "1", "contents": f"Oslo\n{text}"}) + "\n")
    build_index(corpus, folder / "index", kind=kind)
    return str(folder / "index")


def test_an_index_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    def told(folder: str) -> object:
        one = {"class_path": "RerankRetriever", "init_args": {"retriever": folder, "model": "m"}}
        return with_contents({"class_path": "X", "init_args": {"retrievers": [one, folder]}})

    first = index_at(tmp_path / "first")
    moved = str(shutil.move(first, tmp_path / "moved"))
    before = told(moved)
    assert str(tmp_path) not in json.dumps(before)
    assert before == told(index_at(tmp_path / "again"))
    assert before != told(index_at(tmp_path / "other", text="Oslo is a town."))
    assert before != told(index_at(tmp_path / "dense", kind="dense"))


def test_weights_are_known_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"first")
    before = with_contents(str(tmp_path))
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"other")
    assert with_contents(str(tmp_path)) != before
    (tmp_path / "model.safetensors").write_bytes(b"first")
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize("value", ["", "nowhere", "a" * 9999, "a\0b", 3, None, True, ["x"]])
def test_all_else_is_as_it_was(value: object) -> None:
    assert with_contents(value) == value


def test_a_manifest_of_something_else_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    assert with_contents(str(tmp_path)) == str(tmp_path)

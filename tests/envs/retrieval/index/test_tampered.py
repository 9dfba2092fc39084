"""An index folder that somebody changed is refused when it is opened, not when it is searched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("faiss")

from research_rl.envs.retrieval import IndexFolderError, build_index, load_retriever
from research_rl.envs.retrieval.index import forget_retrievers


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    rows = [{"id": str(i), "contents": f"house {i}\nstands near stream {i}"} for i in range(5)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_index(corpus, folder / "index", kind="dense", dim=64, copy_corpus=True)


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    forget_retrievers()
    shutil.copytree(made, tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (None, "kind", ["dense"]),
        (None, "kind", {}),
        (None, "format", "1"),
        (None, "corpus", ["path"]),
        (None, "index", "flat"),
        (None, "encoder", 3),
        (None, "versions", []),
        ("corpus", "path", 3),
        ("corpus", "path", ["a"]),
        ("corpus", "sha256", {}),
        ("corpus", "count", "5"),
        ("corpus", "count", True),
        ("corpus", "count", -1),
        ("corpus", "bytes", 1.5),
        ("corpus", "mtime_ns", None),
        ("index", "type", {}),
        ("index", "metric", 1),
        ("index", "dimension", "64"),
        ("index", "file", 3),
        ("index", "nprobe", "many"),
        ("encoder", "name", 5),
        ("encoder", "settings", ["dim"]),
        ("encoder", "settings", {"dim": "64"}),
        ("encoder", "settings", {"unknown": 1}),
    ],
)
def test_a_manifest_of_another_shape_is_refused(
    part: str | None, name: str, value: Any, index: Path
) -> None:
    load_retriever(index)
    file = index / "manifest.json"
    manifest = json.loads(file.read_text())
    (manifest if part is None else manifest[part])[name] = value
    file.write_text(json.dumps(manifest))
    with pytest.raises((IndexFolderError, ValueError), match=name) as refused:
        load_retriever(index)
    assert "research_rl" in refused.traceback[-1].frame.f_globals["__name__"]


@pytest.mark.parametrize("text", ["[" * 5000, "[]", "3", '"manifest"', "null", "{", ""])
def test_what_is_no_manifest_is_refused(text: str, index: Path) -> None:
    (index / "manifest.json").write_text(text)
    with pytest.raises(IndexFolderError, match="is not a manifest"):
        load_retriever(index)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o[::-1], "must rise"),
        (lambda o: o - 1, "must rise"),
        (lambda o: o + 10**6, "must rise"),
        (lambda o: np.where(o == o[2, 0], 10**12, o), "must rise"),
        (lambda o: o.astype(np.float64), "whole numbers"),
        (lambda o: o[:, 0], "two columns"),
        (lambda o: o[:-1], "must hold 5 offsets"),
    ],
)
def test_offsets_that_are_wrong_are_refused(change: Any, said: str, index: Path) -> None:
    file = index / "offsets.npy"
    np.save(file, change(np.load(file)))
    with pytest.raises(IndexFolderError, match=said):
        load_retriever(index)

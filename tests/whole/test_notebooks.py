"""The notebooks run as they are; a tiny config stands in for theirs, or, slowly, the real one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.places import ROOT
from doubles.tiny_run import write_config

from research_rl.envs.retrieval.index.build import build_index

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs_and_no_paths(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert code
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8"))


def executed(path: Path, folder: Path, parameters: str | None) -> list[Any]:
    """Run a notebook in a folder, its parameters replaced; return the cells of code."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if parameters is not None and "parameters" in cell.metadata.get("tags", []):
            cell.source = parameters
    os.environ.setdefault("MPLBACKEND", "agg")
    client = nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": folder}})
    client.execute()
    return [cell for cell in book.cells if cell.cell_type == "code"]


def said(cells: list[Any]) -> str:
    return json.dumps([cell.outputs for cell in cells])


def tiny(folder: Path) -> str:
    """Parameters of a run of seconds that searches an index and exports its policy."""
    config = yaml.safe_load(write_config(folder).read_text("utf-8"))
    corpus = folder / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "Oslo\\nOslo is a city."}\n', encoding="utf-8")
    build_index(corpus, folder / "index")
    config["trainer"]["callbacks"].append({"class_path": "ExportPolicy"})
    config["model"]["env"] = {"index": str(folder / "index")}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return 'config, folder, options = "mine.yaml", "runs/book", {"trainer.max_steps": 1}'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    cells = executed(path, tmp_path, tiny(tmp_path))
    assert (tmp_path / "runs/book/checkpoints/last.ckpt").is_file()
    written = yaml.safe_load((tmp_path / "runs/book/config.yaml").read_text(encoding="utf-8"))
    if path.stem == "your_own_rule":
        assert written["model"]["algorithm"]["class_path"] == "__main__.RankRule"
        assert "FewSearches" in str(written["model"]["env"]["reward"])
        assert "train/reward" in said(cells)
    else:
        assert "searched for" in said(cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_is(path: Path, tmp_path: Path) -> None:
    cells = executed(path, tmp_path, None)
    assert "val/f1" in said(cells) or "searched for" in said(cells)

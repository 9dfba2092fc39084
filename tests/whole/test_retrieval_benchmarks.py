"""The benchmarks of retrieval run at a small size, one feeding the next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.places import ROOT

pytest.importorskip("faiss")
FOLDER = ROOT / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_scale_and_the_plan_reckoned_from_it(tmp_path: Path) -> None:
    found = tmp_path / "scale.json"
    small = ("--passages", "3000", "--dim", "32", "--queries", "520", "--rounds", "1")
    text = run("retrieval.py", *small, "--kinds", "torch", "ivf-sq8", "--json", str(found))
    assert "| ivf-sq8, nprobe 32 |" in text
    assert "(bar: 5)" in text
    rows = {row["way"]: row for row in json.loads(found.read_text())["rows"]}
    assert rows["torch"]["recall"] == rows["flat"]["recall"] == 1
    assert 0.5 < rows["ivf-sq8, nprobe 8"]["recall"] < rows["ivf-sq8, nprobe 128"]["recall"] <= 1
    assert rows["ivf-sq8, nprobe 8"]["disk_gb"] < rows["flat"]["disk_gb"]
    plan = run("retrieval_plan.py", str(found))
    assert "| flat | 60.4 | 1.000 |" in plan
    assert "| flat, 16 bits | 30.1 | 7.6 ms |" in plan


def test_the_plan_follows_lists_and_walks_in_a_graph(tmp_path: Path) -> None:
    ways = [("flat", 0), ("rabitq", 32), ("hnsw", 32)]
    measured = [
        {"way": f"{kind}, {n}" if n else kind, "kind": kind, "setting": n, "recall": 0.9}
        | {"build_s": 1000, "ms_1": 1.0, "ms_64": 10.0, "ms_512": 100.0}
        for kind, n in ways
    ]
    found = tmp_path / "scale.json"
    found.write_text(json.dumps({"passages": 1_000_000, "dim": 384, "rows": measured}))
    rows = {line.split(" | ")[0]: line for line in run("retrieval_plan.py", str(found)).split("\n")}
    assert rows["| rabitq, nprobe 128"].split(" | ")[4] == "42 ms"  # 42 times the numbers
    # twice the numbers a vector, 1.22 times the steps of a walk; 21 times the vectors put in
    assert rows["| hnsw, 32"].split(" | ")[3:5] == ["14 h", "2.4 ms"]


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu() -> None:
    small = ("--device", "cpu", "--passages", "2000", "--dim", "32", "--rounds", "2")
    text = run("retrieval_gpu.py", *small, "--batches", "1", "8")
    assert "same_ids: 1.0" in text
    assert "| faiss | 8 |" in text

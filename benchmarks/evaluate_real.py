"""The five methods on real questions over HTTP, killed in the middle, resumed to the same card.

Takes question files and corpora in the FlashRAG layout, one pair for each data set
(``NAME_questions.jsonl`` and ``NAME_corpus.jsonl`` in one folder), builds a BM25-sketch index of
each corpus and asks a model that is served over HTTP. The model may be a small random one: its
answers are worthless then, but retrieval is real and no figure may be missing.

    transformers serve --port 8765 FOLDER
    python benchmarks/evaluate_real.py DATA --url http://127.0.0.1:8765/v1 --model FOLDER --limit 25
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from research_rl.envs.retrieval import BM25SketchEncoder, build_index

METHODS: dict[str, dict[str, Any]] = {
    "Naive Generation": {"class_path": "NaiveGeneration", "init_args": {"max_tokens": 8}},
    "Naive RAG": {"class_path": "NaiveRAG", "init_args": {"max_tokens": 8}},
    "Iter-RetGen": {
        "class_path": "IterRetGen",
        "init_args": {"max_tokens": 8, "iterations": 2},
    },
    "IRCoT": {"class_path": "IRCoT", "init_args": {"max_tokens": 8, "iterations": 2}},
    "ReSearch": {
        "class_path": "ReSearch",
        "init_args": {"prompt": "instruct", "max_response_tokens": 48, "max_searches": 2},
    },
}
NEEDED = ("em", "f1", "cover_em", "searches", "sampled_tokens", "seconds", "format")


def configuration(data: Path, out: Path, url: str, model: str, limit: int) -> Path:
    """Build the indexes and write the configuration of the evaluation."""
    datasets = {}
    for questions in sorted(data.glob("*_questions.jsonl")):
        name = questions.name.removesuffix("_questions.jsonl")
        index, corpus = out / "indexes" / name, questions.with_name(f"{name}_corpus.jsonl")
        if corpus.is_file() and not name.endswith("_small"):
            if not (index / "manifest.json").is_file():
                build_index(corpus, index, kind="dense", encoder=BM25SketchEncoder(dim=1024))
            datasets[name] = {"questions": str(questions), "index": str(index)}
    if not datasets:
        raise FileNotFoundError(f"{data} must hold NAME_questions.jsonl and NAME_corpus.jsonl")
    settings = {"url": url, "model": model, "api": "chat", "concurrency": 4}
    config = {
        "title": "Real questions, a served model",
        "datasets": datasets,
        "models": {
            "served": {"generator": {"class_path": "OpenAIGenerator", "init_args": settings}}
        },
        "methods": METHODS,
        "closed_book": "Naive Generation",
        "limit": limit,
        "batch_size": 8,
        "top_k": 3,
        "resamples": 1000,
    }
    path = out / "evaluate.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def evaluate(config: Path, out: Path, kill_after: int | None = None) -> None:
    """Run the command; kill it without warning once so many rows are there."""
    command = [sys.executable, "-m", "research_rl.trainers.cli", "evaluate"]
    command += ["--config", str(config), "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        rows = out / "rows.jsonl"
        while process.poll() is None:
            written = rows.read_bytes().count(b"\n") if rows.is_file() else 0
            if kill_after is not None and written >= kill_after:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
    if kill_after is None and process.returncode:
        raise RuntimeError(f"research evaluate ended with {process.returncode}; see {log.name}")


def card(out: Path) -> list[list[str]]:
    """Return the card's table without the one measure that no two runs share."""
    with (out / "card.csv").open(newline="", encoding="utf-8") as file:
        return [line for line in csv.reader(file) if line[3] != "seconds"]


def gaps(out: Path, datasets: int) -> list[str]:
    """Return which measures are missing of which cell."""
    with (out / "card.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found = {(x["dataset"], x["method"], x["measure"]) for x in lines if x["mean"]}
    cells = {(dataset, method) for dataset, method, _ in found}
    lost = [f"{c[0]}, {c[1]}: {m}" for c in sorted(cells) for m in NEEDED if (*c, m) not in found]
    if len(cells) != datasets * len(METHODS):
        lost.append(f"{len(cells)} cells, not {datasets * len(METHODS)}")
    return lost


def main() -> None:
    """Run whole, run killed and resumed, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate_real"))
    parser.add_argument("--url", required=True, help="of an OpenAI-compatible server, with /v1")
    parser.add_argument("--model", required=True, help="what the server calls its model")
    parser.add_argument("--limit", type=int, default=25, help="questions of each data set")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.out.mkdir(parents=True, exist_ok=True)
    config = configuration(args.data, args.out, args.url, args.model, args.limit)
    datasets = len(yaml.safe_load(config.read_text(encoding="utf-8"))["datasets"])
    whole, killed = args.out / "whole", args.out / "killed"
    evaluate(config, whole)
    for share in (0.3, 0.7):
        evaluate(config, killed, kill_after=int(share * datasets * len(METHODS) * args.limit))
    evaluate(config, killed)
    missing = gaps(whole, datasets)
    same = card(whole) == card(killed)
    print((whole / "card.md").read_text(encoding="utf-8"))
    print("every measure is there" if not missing else "missing: " + "; ".join(missing))
    print("killed twice and resumed: " + ("the same card" if same else "ANOTHER card"))
    if missing or not same:
        sys.exit(1)


if __name__ == "__main__":
    main()

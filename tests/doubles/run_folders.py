"""Folders of runs made by hand: a healthy one, a dead one, a strange one; no model in them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml
from doubles.sample_rollouts import HOSTILE

from research_rl.trainers.overview.shipped import _shipped


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write metrics.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted({name for row in rows for name in row})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def write_config(folder: Path, **changes: Any) -> None:
    """Write the quickstart's config with changed options, ``model__seed=2`` for instance."""
    config = _shipped("quickstart")
    config["trainer"]["default_root_dir"] = str(folder)
    for name, value in changes.items():
        section, *places = name.split("__")
        inside = config if not places else config[section]
        for place in places[:-1]:
            inside = inside[place]
        inside[places[-1] if places else section] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def rollout_row(step: int, number: int, right: bool, **changes: Any) -> dict[str, Any]:
    """A row of rollouts.jsonl: a validation question after ``step`` iterations."""
    name = f"Owner {number}"
    said = name if right else "nobody"
    row = {
        **{"split": "val", "step": step, "question_id": f"q{number}"},
        **{"question": f"Who owns house {number} ?", "answers": [name], "hops": 1},
        "turns": ["<think> hm </think> <search> house </search>", f"<answer> {said} </answer>"],
        "results": [" <result>\nHouse\nA house.\n</result>"],
        **{"queries": ["house"], "passage_ids": [["p1"]], "prediction": said},
        **{"reward": float(right), "f1": float(right), "em": float(right), "format_error": None},
        **{"advantage": None, "finish_reason": "answer"},
    }
    return row | changes


def write_rollouts(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write rollouts/rollouts.jsonl."""
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rollouts" / "rollouts.jsonl").write_text(text, encoding="utf-8")


def healthy(folder: Path, steps: int = 10, gain: float = 1.0, **changes: Any) -> Path:
    """A run that learns: reward and F1 rise to ``gain``."""
    rows: list[dict[str, Any]] = []
    for step in range(steps):
        share = gain * step / max(1, steps - 1)
        if step % 5 == 0:
            rows.append({"step": step, "val/f1": share, "val/searches": 2.0})
        row: dict[str, Any] = {"train/reward": 0.1 + 0.8 * share, "train/format": 0.97}
        row |= {"train/f1": share, "train/searches": 2.0, "train/sampled_tokens": 40.0}
        row |= {"train/response_tokens": 60.0, "time/rollout_s": 2.0, "time/update_s": 3.0}
        rows.append({"step": step, **row, "train/truncated": 0.0, "health/all_wrong": 0.3})
    write_metrics(folder, rows)
    write_config(folder, **{"trainer__max_steps": steps, **changes})
    seen = [rollout_row(s, q, gain * s >= q) for s in range(0, steps, 5) for q in range(8)]
    write_rollouts(folder, seen)
    return folder


def dead(folder: Path, steps: int = 6) -> Path:
    """A run of which no rollout was ever paid; it was stopped before its end."""
    row = {"train/reward": 0.0, "train/format": 0.0, "train/truncated": 1.0, "train/f1": 0.0}
    write_metrics(folder, [{"step": step, **row} for step in range(steps)])
    write_config(folder)
    verdict = {"name": "no_difference", "said": "in none of 16 groups", "remedy": "show the form"}
    lines = [{"iteration": step + 1, "verdicts": [verdict]} for step in range(steps)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "signal.jsonl").write_text(text, encoding="utf-8")
    return folder


def forgetful(folder: Path, questions: int = 8) -> Path:
    """A run whose F1 rises though it unlearns all its 3-hop questions, of which so many."""
    rows: list[dict[str, Any]] = []
    for step in range(10):
        row = {"step": step, "train/reward": 0.1 + 0.04 * step, "train/format": 1.0}
        rows.append(row | {"time/rollout_s": 2.0, "time/update_s": 3.0, "time/health_s": 1.0})
    for step, one, three, searches in ((0, 0.1, 0.6, 3.0), (5, 1.0, 0.0, 2.0), (10, 1.0, 0.0, 2.0)):
        row = {"step": step, "val/f1": 0.7 * one + 0.3 * three, "val/f1_1hop": one}
        rows.append(row | {"val/f1_3hop": three, "val/searches_3hop": searches})
    write_metrics(folder, rows)
    write_config(folder, trainer__max_steps=10)
    seen = [rollout_row(s, q, s == 0, hops=3) for s in (0, 5, 10) for q in range(questions)]
    write_rollouts(folder, seen)
    return folder


def strange(folder: Path) -> Path:
    """A run of somebody who writes markup wherever a text may stand."""
    healthy(folder, model__env__prompt=HOSTILE.encode("utf-8", "replace").decode())
    odd: list[dict[str, Any]] = [
        rollout_row(0, 1, True, question=HOSTILE, prediction=HOSTILE, answers=[HOSTILE]),
        rollout_row(5, 1, False, question=HOSTILE, prediction=None, answers="no list", queries=7),
        {"split": "val", "step": 5, "question_id": HOSTILE, "question": 3, "reward": "x"},
    ]
    write_rollouts(folder, odd)
    with (folder / "rollouts" / "rollouts.jsonl").open("a") as file:
        file.write('[1]\nnot json\n{"step": "five"}\n')
    verdict = {"name": HOSTILE, "said": HOSTILE, "remedy": {"a": HOSTILE}}
    rows = [{"iteration": 10, "verdicts": [verdict]}, {"iteration": "x", "verdicts": 3}]
    (folder / "signal.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    guard = {"step": HOSTILE, "kind": "warn", "reasons": [HOSTILE, 3]}
    (folder / "guard.jsonl").write_text(json.dumps(guard) + "\n")
    (folder / "costs.json").write_text(json.dumps({"machine": HOSTILE, "host_bytes": "many"}))
    return folder

"""Published question sets in small: a row, files of rows, and the job that converts them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from research_rl.envs.questions.catalogue import OTHER, find_dataset
from research_rl.envs.questions.convert import Job

Rows = list[dict[str, Any]]

HOTPOT: dict[str, Any] = {
    "_id": "5a8b",
    "question": "Who wrote Corliss?",
    "answer": "F. Hugh",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Kiss", 0], ["Corliss", 1], ["Kiss", 1]],
    "context": [
        ["Kiss", ["Kiss is a film.", " It has Corliss."]],
        ["Rome", ["Rome is a city."]],
        ["Corliss", ["Corliss is a girl.", " F. Hugh wrote her."]],
    ],
}


def write(path: Path, rows: Rows) -> Path:
    """Write rows in the container that the suffix names."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


def job(source: Path, name: str = OTHER, **options: Any) -> Job:
    out = options.pop("out", source.parent / "out")
    return Job(find_dataset(name), options.pop("split", "dev"), source, out, **options)

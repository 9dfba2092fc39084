"""Shards of a build, made by several GPUs or machines and merged afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research_rl.envs.retrieval.index.build_steps import RAW
from research_rl.envs.retrieval.index.manifest import (
    INDEX_FORMAT,
    SHARD,
    IndexFolderError,
    write_json,
)
from research_rl.envs.retrieval.vectors import Metric, VectorFile

_SAME = ("format", "of", "count", "dim", "half", "encoder")


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) of "i/n", the i-th of n parts, counted from 0.

    Raises:
        ValueError: it is written otherwise, or i is not below n.
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise ValueError(f"shard must be i/n with 0 <= i < n, such as 0/4, got {text!r}")
    return int(number), int(of)


def write_shard(
    folder: Path, shard: tuple[int, int], rows: range, file: VectorFile, about: dict[str, Any]
) -> None:
    """Say in a shard's folder what it holds; ``about`` is what all shards have in common."""
    number, of = shard
    place = {"shard": number, "of": of, "rows": [rows.start, rows.stop]}
    kept = {"dim": file.dim, "half": file.dtype.itemsize == 2}
    write_json(folder / SHARD, {"format": INDEX_FORMAT} | place | kept | about)


def read_shards(folders: Sequence[Path]) -> tuple[list[VectorFile], dict[str, Any], Path]:
    """Return the vectors of all shards in their order, what they have in common, and the first.

    Raises:
        IndexFolderError: one is missing, not finished, or made from something else.
    """
    found = sorted(
        ((_read(folder), folder) for folder in folders), key=lambda pair: pair[0]["shard"]
    )
    about, first = found[0]
    for other, folder in found:
        for key in _SAME:
            if other[key] != about[key]:
                raise IndexFolderError(
                    f"shards must be made alike, got {key} {other[key]!r} in {folder} and "
                    f"{about[key]!r} in {first}"
                )
        if other["corpus"]["sha256"] != about["corpus"]["sha256"]:
            raise IndexFolderError(f"shards must have one corpus, got another in {folder}")
    numbers = [other["shard"] for other, _ in found]
    if numbers != list(range(about["of"])):
        raise IndexFolderError(
            f"shards must be 0 to {about['of'] - 1}, each once, got {numbers}; make those that "
            f"are missing: research index build --shard i/{about['of']}"
        )
    metrics = [other["metric"] for other, _ in found if "metric" in other]
    if len(set(metrics)) > 1:
        raise IndexFolderError(f"shards must be made alike, got the metrics {sorted(set(metrics))}")
    about = about | ({"metric": metrics[0]} if metrics else {})  # 0.1.0 kept none
    files = []
    for other, folder in found:
        file = VectorFile(folder / RAW, about["dim"], about["half"])
        wanted = other["rows"][1] - other["rows"][0]
        if len(file) != wanted:
            raise IndexFolderError(
                f"shard {folder} must hold {wanted} vectors, got {len(file)}; build it again"
            )
        files.append(file)
    return files, about, first


def metric_of(folders: Sequence[str | Path]) -> Metric:
    """Return the metric that shards were made for; "ip" where an older version made them.

    Raises:
        IndexFolderError: one is none.
    """
    kept = [_read(Path(folder)).get("metric") for folder in folders]
    return next((metric for metric in kept if metric is not None), "ip")


def check_metric(about: dict[str, Any], folder: Path, metric: Metric) -> None:
    """Refuse to merge shards for another metric than the one that they were made for.

    Args:
        about: what shards have in common.
        folder: one of them.
        metric: of the index.

    Raises:
        IndexFolderError: it is another one.
    """
    if (known := about.get("metric", metric)) != metric:
        raise IndexFolderError(
            f"metric must be {known!r}, for which shard {folder} was made, got {metric!r}; leave "
            f'--metric out, or take "metric" out of {SHARD} in each shard if {metric!r} is meant'
        )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SHARD
    if not path.is_file():
        raise IndexFolderError(
            f"{folder} is no shard (it has no {SHARD}); make it: "
            "research index build --corpus CORPUS.jsonl --out FOLDER --shard i/n"
        )
    return dict(json.loads(path.read_text(encoding="utf-8")))

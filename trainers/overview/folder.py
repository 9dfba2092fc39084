"""The folder of a run, read as text and numbers.

``RunFolder.read(Path("runs/quickstart"))`` reads config, metrics, verdicts, rows of rollouts and of
evaluations. Whatever is missing is empty, and what cannot be read is named in ``problems``: a run
that died, or that is still going on, is read like any other. No class that the config names is
imported, no ``${...}`` is followed and no checkpoint is opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from research_rl.trainers.callbacks import Curves, read_metrics
from research_rl.trainers.settings import UsageError, read_yaml

JsonRow = dict[str, Any]
ReadT = TypeVar("ReadT")
CONFIG, METRICS, COSTS = "config.yaml", "metrics.csv", "costs.json"
_LARGEST = {CONFIG: 4 << 20, METRICS: 512 << 20, COSTS: 1 << 20}
_MOST_BYTES = 1 << 30
"""Of a file of rows; what is larger is left out and named."""
_NEEDED = ("split", "step", "question_id", "question", "reward")


@dataclass(frozen=True)
class Answers:
    """The rows of an evaluation that lies in a run's folder.

    Args:
        folder: where, relative to the run.
        rows: as ``research evaluate`` wrote them.
    """

    folder: str
    rows: list[JsonRow]


@dataclass
class RunFolder:
    """What the files of a run say.

    Args:
        path: the folder.
        config: of config.yaml, its references as they stand; empty where there is none.
        curves: of metrics.csv.
        signal: rows of signal.jsonl, the verdicts of the signal check.
        guard: rows of guard.jsonl, what a guard saw and did.
        rollouts: rows of rollouts/rollouts.jsonl, in order.
        answers: evaluations below the folder.
        costs: of costs.json: peaks of memory, the machine, and the command that trains.
        problems: a line for each file that could not be read, or not in full.
        changed: seconds since 1970 at which a file of the run was last written; 0 for none.
    """

    path: Path
    config: JsonRow = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    signal: list[JsonRow] = field(default_factory=list)
    guard: list[JsonRow] = field(default_factory=list)
    rollouts: list[JsonRow] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    costs: JsonRow = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    changed: float = 0.0

    @classmethod
    def read(cls, path: Path, rollouts: bool = True, begun: bool = True) -> RunFolder:
        """Read a folder.

        Args:
            path: the folder.
            rollouts: also the rows of rollouts and evaluations, which may be large.
            begun: refuse a folder in which there is nothing of a run.

        Raises:
            FileNotFoundError: it is no folder of a run.
        """
        if begun and not is_run(path):
            raise FileNotFoundError(
                f"{path} must be the folder of a run, with its {CONFIG} or {METRICS}, and has "
                "neither; `research runs` lists the runs below a folder"
            )
        run = cls(path)
        run.config = run._whole(CONFIG, _config_of, {})
        run.curves = run._whole(METRICS, read_metrics, {})
        run.costs = run._whole(COSTS, _object_of, {})
        run.signal = run._rows(path / "signal.jsonl", _is_verdict)
        run.guard = run._rows(path / "guard.jsonl", _has("kind"))
        if rollouts:
            run.rollouts = run._rows(path / "rollouts" / "rollouts.jsonl", _is_rollout)
            run.answers = list(run._evaluations())
        run.changed = _last_change(path)
        return run

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option of the config by its dotted name, ``default`` where it is not there."""
        value: Any = self.config
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    def metric(self, name: str) -> list[tuple[int, float]]:
        """Return the points of a metric, in order of steps."""
        curve = self.curves.get(name)
        return [] if curve is None else list(zip(*curve, strict=True))

    def last(self, name: str) -> float | None:
        """Return the latest value of a metric, None where it was never logged."""
        points = self.metric(name)
        return points[-1][1] if points else None

    @property
    def iterations(self) -> int:
        """How many iterations were trained."""
        steps = [s for name, curve in self.curves.items() if _of_training(name) for s in curve[0]]
        return 1 + max(steps, default=-1)

    def _whole(self, name: str, read: Callable[[Path], ReadT], nothing: ReadT) -> ReadT:
        file = self.path / name
        if not file.is_file():
            return nothing
        if file.stat().st_size > _LARGEST[name]:
            self.problems.append(f"{name} is larger than {_LARGEST[name] >> 20} MiB and left out")
            return nothing
        try:
            return read(file)
        except (OSError, ValueError, RecursionError, UsageError) as error:
            self.problems.append(f"{name} cannot be read: {' '.join(str(error).split())[:300]}")
            return nothing

    def _rows(self, file: Path, fits: Callable[[JsonRow], bool]) -> list[JsonRow]:
        if not file.is_file():
            return []
        if file.stat().st_size > _MOST_BYTES:
            self.problems.append(f"{self._named(file)} is larger than 1 GiB and left out")
            return []
        found, bad = [], []
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = _parsed(line)
                if row is not None and fits(row):
                    found.append(row)
                elif line.strip():
                    bad.append(number)
        if bad:
            first = f"{len(bad):,} of its rows were passed over, the first in line {bad[0]:,}"
            self.problems.append(f"{self._named(file)}: {first}")
        return found

    def _named(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _evaluations(self) -> Iterator[Answers]:
        for file in sorted([*self.path.glob("rows.jsonl"), *self.path.glob("*/rows.jsonl")]):
            rows = self._rows(file, _is_answer)
            if rows:
                yield Answers(file.parent.relative_to(self.path).as_posix(), rows)


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run: with metrics, or with the config of a fit."""
    if (path / METRICS).is_file():
        return True
    config = path / CONFIG
    return config.is_file() and not (path / "config.json").is_file()


def number(value: Any) -> float | None:
    """Return a finite number as it is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def _of_training(name: str) -> bool:
    return name.startswith(("train/", "health/"))


def _config_of(file: Path) -> JsonRow:
    config = read_yaml(file)
    if not isinstance(config, dict):
        raise ValueError(f"it must hold sections, got {type(config).__name__}")
    return config


def _object_of(file: Path) -> JsonRow:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it must hold an object, got {type(found).__name__}")
    return found


def _parsed(line: bytes) -> JsonRow | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _has(name: str) -> Callable[[JsonRow], bool]:
    return lambda row: name in row


def _is_verdict(row: JsonRow) -> bool:
    return (
        isinstance(row.get("iteration"), int)
        and isinstance(row.get("verdicts"), list)
        and all(isinstance(one, dict) for one in row["verdicts"])
    )


def _is_rollout(row: JsonRow) -> bool:
    return all(name in row for name in _NEEDED) and isinstance(row["step"], int)


def _is_answer(row: JsonRow) -> bool:
    names = ("dataset", "model", "method", "id")
    return all(isinstance(row.get(name), str) for name in names)


def _last_change(path: Path) -> float:
    """When metrics, config or a checkpoint was last written."""
    files = [path / METRICS, path / CONFIG, *(path / "checkpoints").glob("*.ckpt")]
    return max((f.stat().st_mtime for f in files if f.exists()), default=0.0)


def texts(value: Any, longest: int = 2000) -> str:
    """Return any value as text of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def nested(value: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option of a config with its dotted name; entries of lists by class or place.

    ``trainer.callbacks`` is a list of classes: theirs are ``trainer.callbacks.RolloutLog.folder``.
    """
    for key, inner in value.items():
        yield from _nested_in(inner, f"{name}.{key}" if name else str(key))


def _nested_in(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and set(value) <= {"class_path", "init_args", "dict_kwargs"}:
        yield name, str(value.get("class_path", "")).rpartition(".")[2]
        yield from nested(value.get("init_args") or {}, name)
    elif isinstance(value, dict) and value:
        yield from nested(value, name)
    elif isinstance(value, list) and value and all(_is_class(item) for item in value):
        for item in value:
            made = item if isinstance(item, dict) else {"class_path": item}
            short = str(made["class_path"]).rpartition(".")[2]
            yield f"{name}.{short}", "listed"
            yield from nested(made.get("init_args") or {}, f"{name}.{short}")
    else:
        yield name, value


def _is_class(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("class_path"), str)

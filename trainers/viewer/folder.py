"""The folder of a run's rollouts: ``train_000010.html``, text, rows of JSON and an index page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research_rl.agents import Rollout
from research_rl.envs.system import clear_partial, lines_of, write_whole
from research_rl.trainers.viewer.follow import QUESTIONS_PAGE, questions_html
from research_rl.trainers.viewer.html import html_page
from research_rl.trainers.viewer.page import reward_terms, rollout_text, rollouts_html

ROLLOUT_ROWS = "rollouts.jsonl"
_COLUMNS = (
    *("split", "step", "question_id", "question", "answers", "hops", "turns", "results"),
    *("queries", "passage_ids", "prediction", "reward", "f1", "em", "format_error", "advantage"),
    *("finish_reason", "metadata"),
)
_IF_ANY = ("protocol", "opened", "parts")
"""Columns of rollouts in another dialect, behind an opened response, or with a reward in parts."""
_TITLES = {"train": "Training rollouts", "val": "Validation rollouts", "test": "Test rollouts"}
_PAGE = re.compile(r"(train|val|test)_(\d+)\.(?:html|txt)")


class RolloutFiles:
    """Writes ``train_000010.html``, ``.txt`` and rows of ``rollouts.jsonl``, and ``index.html``.

    Args:
        folder: created at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._means = _means(folder / ROLLOUT_ROWS)

    @property
    def index(self) -> Path:
        """The page that lists the pages."""
        return self.folder / "index.html"

    def begin(self, step: int) -> None:
        """Remove what an earlier run wrote at ``step`` or after it; step 0 begins a new run.

        A validation at ``step`` itself is kept: the checkpoint was made after it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_partial(self.folder)
        for path in self.folder.iterdir():
            match = _PAGE.fullmatch(path.name)
            if match and not _is_past(match[1], int(match[2]), step):
                path.unlink()
        self._keep(lambda split, at: _is_past(split, at, step))
        if (self.folder / QUESTIONS_PAGE).is_file():
            self._write_questions()
        self._means = _means(self.folder / ROLLOUT_ROWS)

    def forget(self, split: str, step: int) -> None:
        """Remove the rows of a validation or test that is about to be repeated."""
        self._keep(lambda *row: row != (split, step))

    def _keep(self, wanted: Callable[[str, int], bool]) -> None:
        rows = self.folder / ROLLOUT_ROWS
        if rows.is_file():
            lines = lines_of(rows.read_text("utf-8"))
            write_whole(rows, "".join(f"{x}\n" for x in lines if _is_wanted(x, wanted)))

    def _write_questions(self) -> None:
        with (self.folder / ROLLOUT_ROWS).open(encoding="utf-8") as file:
            write_whole(self.folder / QUESTIONS_PAGE, questions_html(file))

    def write(
        self,
        split: str,
        step: int,
        rollouts: Sequence[Rollout],
        advantages: Sequence[float] | None = None,
        num_questions: int | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        """Write the rollouts of the first questions.

        Args:
            split: train, val or test.
            step: iterations that the policy had learned from.
            rollouts: in any order.
            advantages: one for each rollout.
            num_questions: how many questions, each with all of its rollouts; None is all.
            decode: from token ids to text, for the page's view of tokens.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        chosen = first_questions(rollouts, num_questions)
        some = [rollouts[i] for i in chosen]
        worth = None if advantages is None else [float(advantages[i]) for i in chosen]
        each = worth if worth is not None else [None] * len(some)
        name = f"{split}_{step:06d}"
        page = rollouts_html(some, worth, _TITLES[split], step, decode)
        write_whole(self.folder / f"{name}.html", page)
        texts = (rollout_text(r, a) for r, a in zip(some, each, strict=True))
        write_whole(self.folder / f"{name}.txt", "\n\n".join(texts))
        rows = [_row(split, step, r, a) for r, a in zip(some, each, strict=True)]
        with (self.folder / ROLLOUT_ROWS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        if rows:
            self._means[split, step] = _mean(rows)
        if split == "val":
            self._write_questions()
        pages = (path.name for path in self.folder.glob("*.html"))
        run = "../index.html" if (self.folder.parent / "index.html").is_file() else ""
        write_whole(self.index, _index(pages, self._means, run))


def first_questions(rollouts: Sequence[Rollout], num_questions: int | None) -> list[int]:
    """Return the places of all rollouts of the first ``num_questions`` different questions."""
    keys = [(r.question.id, r.question.text) for r in rollouts]
    chosen = set(list(dict.fromkeys(keys))[:num_questions])
    return [place for place, key in enumerate(keys) if key in chosen]


def _row(split: str, step: int, rollout: Rollout, advantage: float | None) -> dict[str, Any]:
    hops = rollout.question.metadata.get("hops")
    own = {"split": split, "step": step, "hops": hops, "advantage": advantage}
    row = rollout.to_row() | own
    if terms := reward_terms(rollout.reward):
        row["parts"] = terms
    return {name: row[name] for name in _COLUMNS} | {n: row[n] for n in _IF_ANY if n in row}


def _is_past(split: str, at: int, step: int) -> bool:
    return at < step or (at == step and split == "val" and step > 0)


def _is_wanted(line: str, wanted: Callable[[str, int], bool]) -> bool:
    try:
        row = json.loads(line)
        return wanted(row["split"], row["step"])
    except (ValueError, KeyError, TypeError):  # the end of a run that was killed while writing
        return False


def _index(names: Iterable[str], means: Mapping[tuple[str, int], str], run: str) -> str:
    steps: dict[int, dict[str, str]] = {}
    has_questions = False
    for name in names:
        has_questions = has_questions or name == QUESTIONS_PAGE
        if match := _PAGE.fullmatch(name):
            steps.setdefault(int(match[2]), {})[match[1]] = name
    splits = {s: t for s, t in _TITLES.items() if any(s in pages for pages in steps.values())}
    return html_page(
        "index.html",
        title="Rollouts of this run",
        rows=ROLLOUT_ROWS,
        run=run,
        questions=QUESTIONS_PAGE if has_questions else "",
        splits=splits,
        steps=sorted(steps.items(), reverse=True),
        means=means,
    )


def _means(rows: Path) -> dict[tuple[str, int], str]:
    """Mean reward, F1 and searches of each page, as text."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in lines_of(rows.read_text("utf-8")) if rows.is_file() else ():
        try:
            row = json.loads(line)
            found.setdefault((row["split"], row["step"]), []).append(row)
        except (ValueError, KeyError, TypeError):  # the end of a run that was killed while writing
            continue
    return {key: _mean(group) for key, group in found.items()}


def _mean(group: list[dict[str, Any]]) -> str:
    number = len(group)
    reward, f1 = (sum(row[name] for row in group) / number for name in ("reward", "f1"))
    searches = sum(len(row["queries"]) for row in group) / number
    return f"reward {reward:.2f}, F1 {f1:.2f}, {searches:.1f} searches"

"""The collection of demonstrations: questions are played, and what is worth imitating is kept.

The folder holds ``rollouts.jsonl`` (the demonstrations), ``asked.jsonl`` (what became of each
question) and, at the end, ``card.json`` and ``card.md``. A killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from research_rl.agents import ModelUnavailable, Rollout
from research_rl.envs import Question
from research_rl.envs.system import alone_in, progress_bar, write_whole
from research_rl.trainers.demonstrations.keep import Keep
from research_rl.trainers.demonstrations.sources import SERVER_FAILED, RolloutSource

log = logging.getLogger(__name__)

ROLLOUTS, ASKED, SETTINGS, CARD = "rollouts.jsonl", "asked.jsonl", "settings.json", "card.json"
_Outcome: TypeAlias = tuple[Question, list[Rollout], Counter[str]]
"""A question, what is kept of it, and the reasons against the rest."""
_LATER = (
    *("questions_content", "index_content", "prompt_content"),
    *("policy_content", "seed", "api", "dialect"),
)
"""Settings that folders of earlier versions do not have; they may have been anything."""
_TOO_MANY = "another rollout of the question is better, or the same"


@dataclass(frozen=True)
class Collection:
    """What is asked and kept.

    Args:
        keep: which rollouts are worth imitating.
        samples: how often each question is played.
        batch_size: questions played together.
        wanted: stop when so many demonstrations are kept; None asks every question.
    """

    keep: Keep = field(default_factory=Keep)
    samples: int = 1
    batch_size: int = 64
    wanted: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def collect(
    source: RolloutSource,
    questions: Sequence[Question],
    folder: Path,
    how: Collection,
    settings: Mapping[str, Any],
    places: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Play the questions, keep what is worth it, and return the card.

    Args:
        source: plays.
        questions: in the order in which they are asked.
        folder: new, or that of a run of the same settings, which goes on.
        how: what is asked and kept.
        settings: everything that decides the outcome, for the folder to be known by.
        places: where things are that may move, such as a server's url; a change is told.

    Raises:
        ValueError: the folder was begun with other settings.
        FileExistsError: another process writes there.
        ModelUnavailable: a server answered no question of a batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        _check_settings(folder, settings, places or {})
        asked = _rows(folder / ASKED)
        _cut_to(folder / ROLLOUTS, sum(row["kept"] for row in asked))
        done = {row["id"] for row in asked}
        todo = [question for question in questions if question.id not in done]
        kept, unanswered = sum(row["kept"] for row in asked), 0
        batches = [todo[i : i + how.batch_size] for i in range(0, len(todo), how.batch_size)]
        with (
            (folder / ROLLOUTS).open("ab") as rollouts,
            (folder / ASKED).open("ab") as journal,
            progress_bar(batches, "collect", len(batches), unit="batch") as progress,
        ):
            for batch in progress:
                if how.wanted is not None and kept >= how.wanted:
                    break
                outcome = _played(source, batch, how)
                unanswered += len(outcome)
                outcome = _answered(outcome, folder)
                unanswered -= len(outcome)
                # first the rollouts, then the journal that counts them: what the journal does not
                # know of is cut off when the run goes on
                _append(rollouts, (r.to_row() for _, good, _ in outcome for r in good))
                rows = [
                    {"id": q.id, "kept": len(good), "against": dict(against)}
                    for q, good, against in outcome
                ]
                _append(journal, rows)
                asked += rows
                kept += sum(len(good) for _, good, _ in outcome)
        _warn_of_unanswered(unanswered)
        card = card_of(asked, len(questions), settings)
        write_whole(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        write_whole(folder / "card.md", card_text(card))
    return card


def _warn_of_unanswered(number: int) -> None:
    if number:
        log.warning(
            "%d questions had no answer from the server and count as not asked; the same command "
            "asks them again",
            number,
        )


def _answered(outcome: list[_Outcome], folder: Path) -> list[_Outcome]:
    """Leave out the questions that failed at the server in every sample: nobody has asked them."""
    kept = [one for one in outcome if one[1] or set(one[2]) != {SERVER_FAILED}]
    if not kept:
        raise ModelUnavailable(
            f"the server must answer some of {len(outcome)} questions, got an answer to none; what "
            f"was kept before is in {folder}, and the same command goes on"
        )
    return kept


def _played(
    source: RolloutSource, questions: Sequence[Question], how: Collection
) -> list[_Outcome]:
    """What is kept of each question, and the reasons against the rest."""
    good: list[list[Rollout]] = [[] for _ in questions]
    against: list[Counter[str]] = [Counter() for _ in questions]
    for sample in range(how.samples):
        for row, played in enumerate(source(questions, sample)):
            reason = played if isinstance(played, str) else how.keep.reason_against(played)
            if isinstance(played, str) or reason is not None:
                against[row][str(reason)] += 1
            else:
                good[row].append(played)
    outcome = []
    for question, found, reasons in zip(questions, good, against, strict=True):
        best, more = how.keep.best(found)
        if more:
            reasons[_TOO_MANY] += more
        outcome.append((question, best, reasons))
    return outcome


def card_of(
    asked: Sequence[Mapping[str, Any]], questions: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the counts of a collection: asked, kept, and thrown away by reason."""
    against: Counter[str] = Counter()
    for row in asked:
        against.update(row["against"])
    return {
        "questions": questions,
        "asked": len(asked),
        "with_a_demonstration": sum(row["kept"] > 0 for row in asked),
        "demonstrations": sum(row["kept"] for row in asked),
        "thrown_away": dict(against.most_common()),
        "settings": dict(settings),
    }


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as markdown."""
    lines = [
        "# Demonstrations",
        "",
        f"{card['demonstrations']} demonstrations of {card['with_a_demonstration']} questions; "
        f"{card['asked']} of {card['questions']} questions were asked.",
        "",
        "| thrown away because | rollouts |",
        "|---|---|",
        *(f"| {reason} | {times} |" for reason, times in card["thrown_away"].items()),
        "",
    ]
    return "\n".join(lines)


def _check_settings(folder: Path, settings: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Refuse a folder of other settings; what it does not know yet is written into it."""
    file = folder / SETTINGS
    text = json.dumps({**settings, **places}, indent=2, ensure_ascii=False, sort_keys=True)
    if not file.is_file():
        if any((folder / name).exists() for name in (ROLLOUTS, ASKED)):
            raise ValueError(
                f"{folder} holds rollouts that no `research collect` made; choose another --out"
            )
        write_whole(file, text + "\n")
        return
    before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
    other = [
        name
        for name in sorted({*before, *now} - {*places})
        if before.get(name) != now.get(name) and not (name in _LATER and name not in before)
    ]
    if other:
        held = any(name.endswith("_content") for name in other)
        raise ValueError(
            f"{folder} was begun with other settings ({', '.join(other)}); give those it has in "
            f"{SETTINGS} to go on, {'and files that hold the same, ' * held}or choose another --out"
        )
    for name in places:
        if name in before and before[name] != now[name]:
            log.warning(
                "%s goes on elsewhere: %s was %s, is %s; the same model must answer there",
                *(folder, name, before[name], now[name]),
            )
    if before != now:
        write_whole(file, text + "\n")


def _rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a torn last one is cut off."""
    if not file.is_file():
        return []
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(file, end)
    return [json.loads(line) for line in data[:end].split(b"\n") if line]


def _cut_to(file: Path, lines: int) -> None:
    """Cut off what was written behind the last line that the journal counts."""
    if not file.is_file():
        return
    size = 0
    with file.open("rb") as rows:
        for _ in range(lines):
            size += len(rows.readline())
    if size < file.stat().st_size:
        os.truncate(file, size)


def _append(file: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n")
    file.flush()
    os.fsync(file.fileno())

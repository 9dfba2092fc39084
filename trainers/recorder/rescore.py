"""The command ``research rescore``: another reward on the stored rollouts of a run.

Records of a FlightRecorder are played again through the run's environment, so that every term sees
the passages. Without records, the rows that RolloutLog wrote (``rollouts/rollouts.jsonl``), or a
file of rollouts, are judged from their text, and nothing of the run is opened.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_rl.envs import Passage, Reward
from research_rl.envs.rewards import RewardFunction, judged, load_reward
from research_rl.envs.system import CommandLine, lines_of, printable, printable_json
from research_rl.trainers.recorder.compared import Rescored, compared, report_of
from research_rl.trainers.recorder.records import FOLDER, Records

if TYPE_CHECKING:
    from research_rl.agents import Rollout

log = logging.getLogger(__name__)
_BETWEEN = re.compile(r"\n\s*\n")
_ENDED = ("answer", "no_answer")
"""Ends at which the environment judges; an episode that was cut is paid 0."""


@dataclass
class Stored:
    """One stored rollout, and what the other reward says of it.

    Args:
        rollout: as it is stored.
        iteration: of training, None where the row does not say.
        verdict: of the other reward.
    """

    rollout: Rollout
    iteration: int | None
    verdict: Reward


def main(args: Sequence[str]) -> None:
    """Run ``research rescore`` with these arguments."""
    parser = CommandLine(
        prog="research rescore",
        description="Apply another reward to the stored rollouts of a run, before any training.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the run's folder, or a file of rollouts (JSONL)")
    parser.add_argument(
        "--reward",
        required=True,
        help='a preset, my_file.my_reward, or JSON such as \'{"answer": 0.8, "evidence": 0.2}\'',
    )
    parser.add_argument("--split", default="train", choices=("train", "val", "test"))
    parser.add_argument(
        "--price",
        type=float,
        metavar="COEF",
        help="charge searches as model.price SearchPrice does",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    reward = load_reward(options.reward)
    found = list(_stored(options.run, reward, options.split))
    if not found:
        raise ValueError(
            f"{options.run} must hold rollouts of the split {options.split}, got none; train with "
            "RolloutLog or FlightRecorder"
        )
    result = compared(_priced(found, options.price))
    if options.json:
        print(printable_json(json.dumps({"reward": options.reward, **result}, indent=2)))
    else:
        print(printable(report_of(options.reward, result)))


def _stored(run: Path, reward: RewardFunction, split: str) -> Iterator[Stored]:
    records = run if run.name == FOLDER else run / FOLDER
    if split == "train" and run.is_dir() and Records(records).iterations():
        yield from _from_records(records.parent, Records(records), reward)
        return
    rows = next(
        (
            p
            for p in (run, run / "rollouts.jsonl", run / "rollouts" / "rollouts.jsonl")
            if p.is_file()
        ),
        None,
    )
    if rows is None:
        raise FileNotFoundError(
            f"{run} must hold records/ or rollouts/rollouts.jsonl, or be a file of rollouts, got "
            "none of them; train with RolloutLog or FlightRecorder"
        )
    yield from _from_rows(rows, reward, split)


def _from_records(run: Path, records: Records, reward: RewardFunction) -> Iterator[Stored]:
    from research_rl.agents import Rollout
    from research_rl.trainers.recorder.play_again import RunSettings, played_again

    settings = RunSettings.read(run)
    settings.env.reward = reward
    rows: Any = settings.env.make().unwrapped
    for iteration in records.iterations():
        rows.at(iteration)
        chosen = list(enumerate(records.read(iteration).records))
        if not chosen:
            continue
        played_again(chosen, rows)
        for (_, old), episode in zip(chosen, rows.episodes, strict=True):
            row = {"question_id": old.question["id"], "question": old.question["text"]}
            row |= {name: old.question[name] for name in ("answers", "metadata")}
            row |= {"turns": old.turns, "results": [], "queries": old.queries}
            row |= {"reward": old.reward["value"], "f1": old.reward["f1"]}
            row |= {"format_error": old.reward["format_error"]}
            yield Stored(Rollout.from_row(row), iteration, episode.reward)


def _from_rows(path: Path, reward: RewardFunction, split: str) -> Iterator[Stored]:
    from research_rl.agents import Rollout

    spoilt = blank = bare = 0
    reads = bool(reward.part_names)  # a preset reads neither metadata nor passages
    for line in lines_of(path.read_text(encoding="utf-8", errors="replace")):
        try:
            row = json.loads(line)
            rollout = Rollout.from_row(row)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            spoilt += bool(line.strip())
            continue
        if row.get("split", split) != split:
            continue
        bare += reads and "metadata" not in row
        step = row.get("step")
        iteration = step if isinstance(step, int) else None
        passages = passages_of(rollout)
        blank += reads and any(not p.contents for found in passages for p in found)
        yield _judged(rollout, iteration, reward, passages)
    for count, what in (
        (spoilt, "lines of %s are no rollouts and are passed over"),
        (
            bare,
            "rollouts of %s are stored without the question's metadata: terms that read it, such "
            "as evidence and abstain, pay 0 for them",
        ),
        (
            blank,
            "rollouts of %s have results whose passages cannot be told apart: terms that read "
            "contents, such as citations, do not see them",
        ),
    ):
        if count:
            log.warning("%d " + what, count, path)


def _judged(
    rollout: Rollout,
    iteration: int | None,
    reward: RewardFunction,
    passages: list[list[Passage]],
) -> Stored:
    """Judge a stored rollout as the environment would at its end."""
    from research_rl.envs.protocols import Segment

    if rollout.finish_reason not in ("", *_ENDED):
        return Stored(rollout, iteration, Reward(0.0, format_error="it was cut off"))
    segments: list[Segment] = []
    for number, turn in enumerate(rollout.whole_turns):
        segments.append(Segment("policy", turn))
        segments += [Segment("env", text) for text in rollout.results[number : number + 1]]
    spoken = reward.speaking(rollout.protocol)
    spoken.at(iteration)
    verdict = judged(spoken, segments, rollout.question, passages)
    return Stored(rollout, iteration, verdict)


def passages_of(rollout: Rollout) -> list[list[Passage]]:
    """Return what each search found: the ids as stored, the contents from the text of the result.

    A result is cut where a line is empty. If it answers several searches, or has not as many
    pieces as passages, their contents stay empty.
    """
    found = [[Passage(str(i), "") for i in ids] for ids in rollout.passage_ids]
    for places, result in zip(rollout.searched, rollout.results, strict=False):
        pieces = [p for p in _BETWEEN.split(rollout.protocol.content(result)) if p.strip()]
        if len(places) == 1 and places[0] < len(found) and len(pieces) == len(found[places[0]]):
            row = zip(found[places[0]], pieces, strict=True)
            found[places[0]] = [Passage(p.id, text.strip()) for p, text in row]
    return found


def _priced(found: Sequence[Stored], coef: float | None) -> list[Rescored]:
    """The rollouts under both rewards, the other one less what is charged within each group.

    Whether a rollout is right, which the price asks, is for the other reward to say.
    """
    keys = [(s.iteration, s.rollout.question.id, s.rollout.question.text) for s in found]
    due = [0.0] * len(found)
    if coef is not None:
        from research_rl.trainers.credit import SearchPrice

        price = SearchPrice(coef)
        groups: dict[Any, list[int]] = {}
        for row, key in enumerate(keys):
            groups.setdefault(key, []).append(row)
        for rows in groups.values():
            judged_anew = [replace(found[row].rollout, reward=found[row].verdict) for row in rows]
            charged = price.charges(judged_anew)
            for row, charge in zip(rows, charged, strict=True):
                due[row] = charge
    return [
        Rescored(
            key, s.rollout.reward.value, float(s.verdict.value) - charge, dict(s.verdict.parts)
        )
        for key, s, charge in zip(keys, found, due, strict=True)
    ]

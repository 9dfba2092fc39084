"""The command ``research replay``: plays recorded rollouts again, or compares two runs.

The recorded turns go through the run's environment once more and must find the same passages and
earn the same rewards. If the run still has the weights that sampled an iteration, the rollouts are
sampled again from their seeds and must be the same tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research_rl.envs.system import CommandLine, printable
from research_rl.trainers.recorder.records import FOLDER, Flight, Numbered, Record, Records

_SHOWN = 5  # differences of an iteration that are printed


class Difference(NamedTuple):
    """The first difference between two rollouts.

    Args:
        rollout: its place in the iteration.
        question: its question's id.
        what: question, prompt, ids, log-probs, passages, reward or finish reason.
        where: the token, search or field, with both values.
    """

    rollout: int
    question: str
    what: str
    where: str

    def __str__(self) -> str:
        return f"rollout {self.rollout} (question {self.question}): {self.what}, {self.where}"


def main(args: Sequence[str]) -> None:
    """Run ``research replay`` with these arguments; exit with status 1 where something differs."""
    parser = CommandLine(
        prog="research replay",
        description="Play a run's recorded rollouts again, or find where two runs part.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the run's folder, written with FlightRecorder")
    parser.add_argument("--iteration", type=int, help="this one alone; default is every one")
    parser.add_argument("--question", help="rollouts of the question with this id alone")
    parser.add_argument("--against", type=Path, help="another run's folder, compared instead")
    options = parser.parse_args(args)
    records = _records(options.run)
    wanted = records.iterations() if options.iteration is None else [options.iteration]
    if options.against is not None:
        others = _records(options.against)
        same = compare_runs(records, others, wanted, options.question)
    else:
        same = replay(options.run, records, wanted, options.question)
    if not same:
        sys.exit(1)


def _records(run: Path) -> Records:
    folder = run if run.name == FOLDER else run / FOLDER
    records = Records(folder)
    if not records.iterations():
        raise FileNotFoundError(
            f"{folder} must hold the records of a run, got none; train with "
            "--trainer.callbacks+=FlightRecorder"
        )
    return records


def compare_runs(
    mine: Records, other: Records, iterations: Sequence[int], question: str | None = None
) -> bool:
    """Print the first difference between two runs; return whether there is none.

    Iterations that only one of the two has recorded are counted and skipped.

    Args:
        mine: of the one run.
        other: of the other one.
        iterations: that are compared.
        question: rollouts of the question with this id alone.

    Raises:
        ValueError: there is no pair of rollouts to compare.
    """
    common = [i for i in iterations if i in set(other.iterations())]
    if len(common) < len(iterations):
        print(f"{len(iterations) - len(common)} iterations are not recorded in {other.folder}")
    if not common:
        raise ValueError(f"the runs must share an iteration, got none in {other.folder}")
    pairs = 0
    for iteration in common:
        a, b = (_chosen(one.read(iteration), question) for one in (mine, other))
        found = list(rollout_differences(a, b))
        if len(a) != len(b):
            which = "" if question is None else f" of the question {question!r}"
            print(printable(f"iteration {iteration}: {len(a)} rollouts{which} and {len(b)}"))
        if found or len(a) != len(b):
            print(f"the runs part in iteration {iteration}, {len(found)} rollouts differ")
            _print(found)
            return False
        pairs += len(a)
    if not pairs:
        raise ValueError(_none_of(question))
    print(
        f"the runs are the same in all {len(common)} iterations that both have recorded, "
        f"{pairs} rollouts each"
    )
    return True


def _none_of(question: str | None) -> str:
    if question is None:
        return "the iterations must hold rollouts, got none in their records"
    return (
        f"no recorded rollout answers the question {question!r}; --question takes an id as the "
        "records and the pages of rollouts show it"
    )


def replay(
    run: Path, records: Records, iterations: Sequence[int], question: str | None = None
) -> bool:
    """Play iterations again and print what differs from the record; return whether nothing does."""
    from transformers.utils.logging import disable_progress_bar

    from research_rl.trainers.recorder.play_again import (
        RunSettings,
        played_again,
        sampled_again,
        weights_of,
    )

    disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = RunSettings.read(run)
    env = settings.env.make()
    rows: Any = env.unwrapped
    total, same, sampled = 0, True, []
    for iteration in iterations:
        flight = records.read(iteration)
        chosen = _chosen(flight, question)
        if not chosen:
            continue
        total += len(chosen)
        rows.at(iteration)
        found = list(rollout_differences(chosen, played_again(chosen, rows)))
        same &= not _report(iteration, "played again", found, len(chosen))
        checkpoint = weights_of(run, flight.weights)
        if checkpoint is not None or flight.weights == 0:
            sampled.append(iteration)
            again = sampled_again(chosen, settings, env, checkpoint)
            found = list(rollout_differences(chosen, again))
            same &= not _report(iteration, "sampled again", found, len(chosen))
    if not total:
        raise ValueError(_none_of(question))
    plural = "s" if len(sampled) > 1 else ""
    numbers = ", ".join(map(str, sampled))
    which = f"of iteration{plural} {numbers}" if sampled else "of none: no weights"
    verdict = "as recorded" if same else "not as recorded, see above"
    print(f"{total} rollouts played again, those {which} sampled again: {verdict}")
    return same


def _report(iteration: int, how: str, found: Sequence[Difference], total: int) -> bool:
    if found:
        print(f"iteration {iteration}, {how}: {len(found)} of {total} rollouts differ")
        _print(found)
    return bool(found)


def _print(found: Sequence[Difference]) -> None:
    for difference in found[:_SHOWN]:
        print(printable(f"  {difference}"))
    if len(found) > _SHOWN:
        print(f"  and {len(found) - _SHOWN} more")


def _chosen(flight: Flight, question: str | None) -> Numbered:
    rows = list(enumerate(flight.records))
    return [(i, r) for i, r in rows if question is None or r.question["id"] == question]


def rollout_differences(mine: Numbered, other: Numbered) -> Iterator[Difference]:
    """Yield the first difference of each pair of rollouts that are not equal."""
    for (number, a), (_, b) in zip(mine, other, strict=False):
        found = _difference(a, b)
        if found is not None:
            yield Difference(number, str(a.question["id"]), *found)


def _difference(a: Record, b: Record) -> tuple[str, str] | None:
    """Return what differs first: question, prompt, tokens, passages, reward, finish reason."""
    if a.question["id"] != b.question["id"] or a.question["text"] != b.question["text"]:
        return "question", f"{a.question['text']!r} and {b.question['text']!r}"
    if a.prompt_ids != b.prompt_ids:
        return "prompt", _at(a.prompt_ids, b.prompt_ids, "token")
    ids = _first(a.response_ids, b.response_ids)
    numbers = [i for i, written in enumerate(a.sampled) if written]
    place = _first(a.logprobs, b.logprobs)
    sure = numbers[place] if place is not None and place < len(numbers) else None
    if sure is not None and (ids is None or sure < ids):
        return "log-probs", f"token {sure}: {a.logprobs[place]} and {b.logprobs[place]}"  # type: ignore[index]
    if ids is not None and (ids >= len(a.sampled) or a.sampled[ids]):
        return "ids", _at(a.response_ids, b.response_ids, "token")
    if a.passage_ids != b.passage_ids or a.queries != b.queries:
        return "passages", _at(a.passage_ids, b.passage_ids, "search")
    if ids is not None:
        return "ids", _at(a.response_ids, b.response_ids, "token of a result")
    if a.reward != b.reward:
        names = [name for name in a.reward if a.reward[name] != b.reward.get(name)]
        return "reward", f"{names[0]}: {a.reward[names[0]]} and {b.reward.get(names[0])}"
    if a.finish_reason != b.finish_reason:
        return "finish reason", f"{a.finish_reason} and {b.finish_reason}"
    return None


def _first(a: Sequence[Any], b: Sequence[Any]) -> int | None:
    """Return the first place where two lists differ, None if they are equal."""
    if a == b:
        return None
    differs = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differs, min(len(a), len(b)))


def _at(a: Sequence[Any], b: Sequence[Any], name: str) -> str:
    place = _first(a, b)
    assert place is not None, "the lists differ"

    def value(values: Sequence[Any]) -> str:
        return str(values[place]) if place < len(values) else "nothing"

    return f"{name} {place}: {value(a)} and {value(b)}"

"""``research data``: fetch question files, convert them, list the data sets that are known."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research_rl.envs.questions.catalogue import DATASETS, FLASHRAG, OTHER, find_dataset
from research_rl.envs.questions.convert import CORPUS, QUESTIONS, DataManifest, Job, convert
from research_rl.envs.system import CommandLine, printable, progress_bar, told_if_full, warn_of_room

_EXAMPLES = """examples:
  research data list
  research data get hotpotqa --split dev --out data/hotpotqa
  research data get musique --split train --source original --out data/musique-train
  research data convert --from hotpotqa hotpot_dev_distractor_v1.json --out data/hotpotqa
  research data convert --from 2wikimultihopqa dev.json --aliases id_aliases.json --out data/2wiki
  research data convert --from musique musique_ans_v1.0_train.jsonl --split train --out data/musique
  research data convert --from other my_questions.csv --out data/mine

  research data audit --questions data/hotpotqa/questions.jsonl --index data/hotpotqa/index

Each folder gets questions.jsonl, manifest.json and, where the rows bring paragraphs, corpus.jsonl.
"""

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val"), "dev"),
    "test": "test",
}


def main(args: Sequence[str] | None = None, more: Sequence[Callable[[Any], object]] = ()) -> None:
    """Run one subcommand.

    Args:
        args: of the command line.
        more: each adds further commands to argparse's list of them.

    Raises:
        SystemExit: code 2 for a command line that makes no sense.
        ValueError: a bad row, or with ``--strict`` other questions than were published.
        OSError: a file cannot be read or written.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    given = _parser(more).parse_args(args)
    given.run(given)


def _list(_: argparse.Namespace) -> None:
    print(
        f"{'name':16} {'split':6} {'questions':>9} {'FlashRAG':>9}  {'original on the Hub':32} home"
    )
    for dataset in DATASETS.values():
        for split in ("train", "dev", "test"):
            official, copy = dataset.expected(split, False), dataset.expected(split, True)
            if official is None and copy is None:
                continue
            numbers = (f"{'-' if n is None else n:>9}" for n in (official, copy))
            print(f"{dataset.name:16} {split:6} {' '.join(numbers)}  ", end="")
            print(f"{dataset.hub or '-':32} {dataset.home} ({dataset.licence})")


def _get(given: argparse.Namespace) -> None:
    dataset = find_dataset(given.name)
    split = given.split
    if given.source == "flashrag":
        if dataset.expected(split, True) is None:
            there = ", ".join(dataset.flashrag)
            raise ValueError(f"FlashRAG's {dataset.name} has no split {split!r} (it has: {there})")
        source, hub_split = f"{FLASHRAG}:{dataset.name}", split
    elif dataset.hub:
        source, hub_split = dataset.hub, dataset.hub_splits.get(split, split)
    else:
        raise ValueError(
            f"{dataset.name} has no original on the Hub; fetch its files from {dataset.home} and "
            f"run: research data convert --from {dataset.name} FILE --out DIR"
        )
    _run(
        Job(
            dataset,
            split,
            source,
            given.out,
            flashrag=given.source == "flashrag",
            strict=given.strict,
            limit=given.limit,
            hub_split=hub_split,
        )
    )


def _convert(given: argparse.Namespace) -> None:
    dataset, source = find_dataset(given.name), Path(given.file)
    if not source.is_file():
        raise FileNotFoundError(f"there is no question file {source}")
    if given.aliases is not None and not given.aliases.is_file():
        raise FileNotFoundError(f"there is no file of aliases {given.aliases}")
    _run(
        Job(
            dataset,
            given.split or _guess_split(source),
            source,
            given.out,
            flashrag=given.flashrag,
            strict=given.strict,
            aliases=given.aliases,
            limit=given.limit,
        )
    )


def _guess_split(source: Path) -> str:
    """Return the split that a file's name contains; without one "test", with a warning."""
    words = re.split(r"[^a-z]+", source.stem.lower())
    split = next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
    if split is None:
        print(
            f"warning: {source.name} does not say which split it holds, taken as test; say which "
            "with --split",
            file=sys.stderr,
        )
    return split or "test"


def _run(job: Job) -> None:
    source = Path(job.source)
    warn_of_room(job.out, "the conversion", 2 * source.stat().st_size if source.is_file() else 0)
    total = job.limit or job.dataset.expected(job.split, job.flashrag)
    with (
        told_if_full(job.out, "what was there before stays, and nothing else is left"),
        progress_bar(desc=f"{job.dataset.name} {job.split}", total=total, unit="row") as bar,
    ):
        manifest = convert(job, bar.update)
    _tell(job, manifest)


def _tell(job: Job, manifest: DataManifest) -> None:
    for warning in manifest.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    print(f"{job.out / QUESTIONS}: {manifest.questions} questions of {manifest.split}")
    if manifest.passages:
        print(f"{job.out / CORPUS}: {manifest.passages} passages")
        print(f"next: research index build --corpus {job.out / CORPUS} --out {job.out / 'index'}")
    if manifest.unanswerable:
        print(f"passed over {manifest.unanswerable} questions that cannot be answered")


def _parser(more: Sequence[Callable[[Any], object]]) -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research data",
        description="Fetch and convert the question files of the field.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = ", ".join(DATASETS)

    listing = commands.add_parser("list", help="name the data sets and their published counts")
    listing.set_defaults(run=_list)

    get = commands.add_parser("get", help="fetch a split from the Hugging Face Hub and convert it")
    get.add_argument("name", help=f"one of {names}")
    get.add_argument("--split", required=True, choices=("train", "dev", "test"))
    get.add_argument(
        "--source",
        choices=("flashrag", "original"),
        default="flashrag",
        help=f"flashrag: {FLASHRAG}; original: the copy with the data set's own fields",
    )
    get.set_defaults(run=_get)

    conversion = commands.add_parser("convert", help="convert a file")
    conversion.add_argument("file", help="JSON, JSONL, parquet, CSV or TSV")
    conversion.add_argument(
        "--from", dest="name", required=True, help=f"one of {names}, or {OTHER}", metavar="NAME"
    )
    conversion.add_argument(
        "--split",
        choices=("train", "dev", "test"),
        help="which split the file is; default: what its name says, else test with a warning",
    )
    conversion.add_argument(
        "--flashrag", action="store_true", help="the file is FlashRAG's copy: check its counts"
    )
    conversion.add_argument(
        "--aliases", type=Path, help="id_aliases.json of 2WikiMultihopQA: further right answers"
    )
    conversion.set_defaults(run=_convert)
    for command in (get, conversion):
        command.add_argument("--out", type=Path, required=True, help="folder of the output")
        command.add_argument("--limit", type=int, help="stop after this many questions")
        command.add_argument(
            "--strict",
            action="store_true",
            help="refuse bad rows, and other counts or hashes than were published",
        )
    for add in more:
        add(commands)
    return parser

"""``research corpus``: a folder of documents made into a corpus."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from research_rl.envs.documents.build import LARGEST, OVERLAP, SIZE, build_documents
from research_rl.envs.documents.kinds import KINDS
from research_rl.envs.documents.report import CorpusReport, report_record
from research_rl.envs.system import (
    CommandLine,
    printable,
    progress_bar,
    told_if_full,
    warn_of_room,
    write_whole,
)

_SHOWN = 10
_EXAMPLES = """examples:
  research corpus build manuals --out corpus.jsonl
  research corpus build src --out corpus.jsonl --skip html --size 600 --overlap 0
  research index build --corpus corpus.jsonl --out index

Markdown, reStructuredText, text and code are read as they are; HTML, PDF and Word files need
pip install -e '.[documents]'.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run one subcommand.

    Raises:
        SystemExit: code 2 for a command line that makes no sense.
        ValueError: nothing in the folder can be read, or a number makes no sense.
        OSError: there is no such folder, or the corpus cannot be written.
        ImportError: a reader is not installed.
    """
    given = _parser().parse_args(args)
    given.run(given)


def _build(given: argparse.Namespace) -> None:
    if given.out.suffix != ".jsonl":
        raise ValueError(f"--out must be a file NAME.jsonl, got {given.out}")
    if given.seconds <= 0 or given.largest <= 0:
        raise ValueError("--seconds and --largest must be above 0")
    warn_of_room(given.out.parent, "a corpus")
    with (
        told_if_full(given.out.parent, "what has been read of files is kept"),
        progress_bar(desc="reading", unit=" files", disable=given.quiet) as bar,
    ):

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = build_documents(
            given.folder,
            given.out,
            size=given.size,
            overlap=given.overlap,
            skip=frozenset(given.skip),
            drop_near=given.drop_near,
            seconds=given.seconds,
            largest=given.largest,
            advance=advance,
        )
    record = json.dumps(report_record(report), indent=2, ensure_ascii=False)
    told = write_whole(given.out.with_suffix(".report.json"), record + "\n")
    for line in _told(given.out, report):
        print(printable(line))
    print(printable(f"all of it: {told}"))
    index = given.out.parent / "index"
    print(printable(f"next: research index build --corpus {given.out} --out {index}"))


def _told(out: Path, report: CorpusReport) -> Iterator[str]:
    """Yield the lines of a report."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.files.most_common())
    files = sum(report.files.values())
    known = ", others are known" if report.again < files else ""
    yield f"{files} files read ({kinds}); {report.again} files were opened now{known}"
    for reason, count in sorted(report.passed.items()):
        yield f"passed over: {count} ({reason})"
    what = "files and folders" if any(f.endswith("/") for f, _ in report.unreadable) else "files"
    yield from _named(
        f"cannot be read: {len(report.unreadable)} {what}",
        [f"{file}: {reason}" for file, reason in report.unreadable],
    )
    yield from _named(
        f"to know: {len(report.notes)} files", [f"{file}: {note}" for file, note in report.notes]
    )
    yield from _named(f"without text: {len(report.empty)} files", report.empty)
    yield from _named(
        f"left out: {len(report.same)} passages whose text another one has",
        [f"{one} has that of {other}" for one, other in report.same],
    )
    left = "left out" if report.near_dropped else "kept (--drop-near leaves them out)"
    yield from _named(
        f"nearly the same as another: {len(report.near)} passages, {left}",
        [f"{one} and {other}: {share:.0%} of words" for one, other, share in report.near],
    )
    sizes = report_record(report)["characters"]
    yield (
        f"{out}: {len(report.lengths)} passages under {report.titles} titles, {sizes['all']} "
        f"characters; a passage has {sizes['least']} to {sizes['most']}, half of them at least "
        f"{sizes['median']}"
    )


def _named(head: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield a heading and the first lines below it; nothing where there are none."""
    if lines:
        yield head
        yield from (f"  {line}" for line in lines[:_SHOWN])
        if len(lines) > _SHOWN:
            yield f"  and {len(lines) - _SHOWN} more"


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research corpus",
        description="Make a corpus of passages from a folder of documents.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="read a folder", allow_abbrev=False)
    add = build.add_argument
    add("folder", type=Path, help="the documents, at any depth")
    add("--out", type=Path, required=True, help="corpus to write, NAME.jsonl")
    add("--size", type=int, default=SIZE, help=f"characters of a passage (default: {SIZE})")
    add(
        "--overlap",
        type=int,
        default=OVERLAP,
        help=f"characters that a passage repeats of the one before (default: {OVERLAP})",
    )
    kinds = sorted(set(KINDS.values()))
    add("--skip", nargs="+", choices=kinds, default=(), help="kinds of files to leave out")
    add("--drop-near", action="store_true", help="leave out nearly equal passages, too")
    add(
        "--seconds",
        type=float,
        default=60.0,
        help="that an HTML, PDF or Word file may take (default: 60)",
    )
    add(
        "--largest",
        type=float,
        default=LARGEST,
        help=f"megabytes of a file (default: {LARGEST:g})",
    )
    add("--quiet", action="store_true", help="no progress bar")
    build.set_defaults(run=_build)
    return parser

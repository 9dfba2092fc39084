"""The command ``research evaluate``: it asks the questions, then writes a card, figures and a page.

A run that was stopped is continued by the same command: only what has no answer yet is asked.
"""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import NoReturn

import torch
from transformers.utils.logging import disable_progress_bar

from research_rl.envs.system import printable, told_if_full, warn_of_room
from research_rl.trainers.evaluate.config import check_config, make_parser, read_config
from research_rl.trainers.evaluate.run import Evaluation
from research_rl.trainers.evaluate.write import Report, write_report

INTERRUPTED = 130
"""Exit status after Ctrl-C, the one that shells use."""


def main(args: list[str]) -> None:
    """Run ``research evaluate`` with these arguments.

    Raises:
        ValueError: the configuration is wrong, or the folder holds rows of another one.
        FileNotFoundError: a file or folder that it names does not exist.
        FileExistsError: another process is writing to the folder.
        ConnectionError: a model's server gave no answers, or a judge no verdict; the rows so far
            are kept.
        RetrieverUnavailable: the search failed; the rows so far are kept.
        SystemExit: the command line is wrong (2) or Ctrl-C was pressed (130).
    """
    logging.basicConfig(level=logging.WARNING, format="research: %(message)s")
    evaluation, is_dry = prepared(args)
    if is_dry:
        print(printable(plan(evaluation)))
        return
    try:
        written = reported(evaluation)
    except KeyboardInterrupt:
        _interrupted(evaluation)
    print(printable(written.markdown))
    print(f"wrote {', '.join(map(str, written.files))}")
    evaluation.check_answered()


def prepared(args: list[str]) -> tuple[Evaluation, bool]:
    """Return the evaluation of a command line, all of it checked, and whether it only plans."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    parser = make_parser()
    parsed = parser.parse_args(args)
    config, described = read_config(parser, parsed)
    methods = check_config(config)
    _set_threads(config.torch_threads)
    return Evaluation(config, methods, described), bool(parsed.dry_run)


def reported(evaluation: Evaluation) -> Report:
    """Ask what has no answer yet, and write the report."""
    warn_of_room(evaluation.out, "an evaluation")
    with told_if_full(evaluation.out, "the answers so far are kept"), evaluation.alone():
        evaluation.answer()
        return write_report(evaluation)


def plan(evaluation: Evaluation) -> str:
    """Return a line for each cell: how many questions are answered and how many would be asked."""
    lines = []
    for cell in evaluation.cells:
        asked = len(evaluation.sources[cell.dataset].questions)
        left = len(evaluation.unanswered(cell))
        lines.append(f"{cell}: {asked:,} questions, {asked - left:,} answered, {left:,} to ask")
    return "\n".join([*lines, f"into {evaluation.out}"])


def _interrupted(evaluation: Evaluation) -> NoReturn:
    rows, total = len(evaluation.wanted()), sum(1 for _ in evaluation.wanted_keys())
    sys.stderr.write(
        f"\nstopped: {rows:,} of {total:,} answers are in {evaluation.rows.path}; "
        "the same command goes on from there\n"
    )
    sys.exit(INTERRUPTED)


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    torch.set_num_threads(threads)
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)

"""``research data``: the commands of question files, and the audit of one over an index."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research_rl.envs.questions import data_command
from research_rl.envs.system import printable


def main(args: Sequence[str] | None = None) -> None:
    """Run one subcommand of ``research data``; see ``data_command``."""
    data_command(args, [_add_audit])


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser("audit", help="what of a question file can be found in an index")
    add = audit.add_argument
    add("--questions", required=True, help="file, folder or Hub data set, perhaps with #SPLIT")
    add("--index", required=True, type=Path, help="folder that `research index build` made")
    add("--train", help="training questions: what they have in common is told and left out")
    add("--out", type=Path, help="folder of the card (default: NAME.audit beside NAME.jsonl)")
    add("--top-k", type=int, default=5, help="passages of a search (default: 5)")
    add("--rounds", type=int, default=2, help="of searches, the question's own is one (default: 2)")
    add("--limit", type=int, help="look at this many questions")
    model = audit.add_argument_group("a model, before it is trained").add_argument
    model("--model", help="Hugging Face name or folder; with --server the name there")
    model("--server", help="url of a server that speaks OpenAI's protocol")
    model("--samples", type=int, default=0, help="rollouts a question for pass@k (default: 0)")
    model("--prompt", choices=("base", "instruct"), default="base", help="of these (default: base)")
    model("--max-tokens", type=int, default=1024, help="of a rollout (default: 1024)")
    audit.set_defaults(run=_audit)


def _audit(given: argparse.Namespace) -> None:
    from research_rl.envs.questions import read_questions
    from research_rl.envs.system import write_whole
    from research_rl.trainers.audit.card import audit_card, audit_record
    from research_rl.trainers.audit.ceiling import (
        AUDIT,
        FILTERED,
        check_same_questions,
        default_folder,
    )

    for name in ("top_k", "rounds", "limit"):
        if (value := getattr(given, name)) is not None and value < 1:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be at least 1, got {value}")
    if given.samples < 0 or (given.samples and not given.model):
        raise ValueError("--samples must come with --model, and must not be negative")
    if given.server and not given.model:
        raise ValueError("--server must come with --model, the model's name on that server")
    questions = read_questions(given.questions)
    train = read_questions(given.train) if given.train else None
    out = given.out or default_folder(given.questions)
    if out is None:
        raise ValueError("--out must be given for questions that are no file or folder here")
    check_same_questions(out, given.questions)
    found = make_audit(given, questions[: given.limit], train)
    write_whole(out / FILTERED, map(_line, found.kept()))
    card = audit_card(found, str(given.questions))
    write_whole(out / "card.md", card)
    record = audit_record(found, str(given.questions))
    write_whole(out / AUDIT, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(printable(card))
    print(f"wrote {out / 'card.md'}, {out / FILTERED} and {out / AUDIT}")


def make_audit(given: argparse.Namespace, questions: Sequence[Any], train: Any) -> Any:
    """Look at the questions as the command line says."""
    from research_rl.envs.retrieval.index import load_retriever, open_corpus_of, read_manifest
    from research_rl.trainers.audit.card import Audit
    from research_rl.trainers.audit.coverage import coverage_of
    from research_rl.trainers.audit.overlap import overlaps, repeated
    from research_rl.trainers.audit.reach import reach_of

    manifest = read_manifest(given.index)
    retriever, corpus = load_retriever(given.index), open_corpus_of(given.index)
    with _bar("reading", len(corpus), "passages") as advance:
        coverage = coverage_of(questions, corpus, advance)
    with _bar("searching", len(questions) * given.rounds, "questions") as advance:
        how = (given.top_k, given.rounds, advance)
        reach = reach_of(questions, coverage, corpus, retriever, *how)
    index = {"folder": str(given.index), "kind": manifest["kind"]}
    index["corpus"] = manifest["corpus"]["sha256"]
    seen = None if train is None else overlaps(questions, train)
    tried = _tried(given, questions, retriever) if given.model else None
    copies = repeated(questions)
    return Audit(questions, coverage, reach, index, seen, len(train or ()), copies, tried)


def _tried(given: argparse.Namespace, questions: Sequence[Any], retriever: Any) -> Any:
    from research_rl.agents.methods import Generator, LocalGenerator, OpenAIGenerator
    from research_rl.trainers.audit.models import try_model

    generator: Generator
    if given.server:
        generator = OpenAIGenerator(given.server, given.model)
    else:
        generator = LocalGenerator(given.model)
    with _bar("answering", len(questions) * (1 + given.samples), "answers") as advance:
        return try_model(
            *(given.model, generator, questions, retriever, given.top_k, given.samples),
            *(given.prompt, given.max_tokens, advance),
        )


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    from research_rl.envs.system import progress_bar

    with progress_bar(total=total, desc=title, unit=f" {unit}", leave=False) as drawn:
        yield drawn.update


def _line(question: Any) -> str:
    row = {"id": question.id, "question": question.text}
    row |= {"golden_answers": list(question.answers), "metadata": dict(question.metadata)}
    return json.dumps(row, ensure_ascii=False) + "\n"

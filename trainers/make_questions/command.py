"""``research questions``: multi-hop questions made of an index, and checked against it."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research_rl.envs.system import CommandLine, printable

_PROPOSERS = ("rules", "served", "local", "file")
_EXAMPLES = """examples:
  research questions make --index index --out questions
  research questions make --index index --out questions --from served --url http://host:8000/v1 \\
      --model NAME --budget 2000
  research questions make --index index --out checked --from file --questions mine.jsonl
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run one subcommand.

    Raises:
        SystemExit: code 2 for a command line that makes no sense.
        ValueError: options that do not fit together, or a folder that was begun otherwise.
        RetrieverUnavailable, ModelUnavailable: the index or the model does not answer.
    """
    given = _parser().parse_args(args)
    given.run(given)


def _check(given: argparse.Namespace) -> None:
    """Refuse what does not fit together."""
    for name in ("count", "budget", "drafts"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(given, name)}")
    if not all(2 <= hops <= 4 for hops in given.hops):
        raise ValueError(f"--hops must be 2 to 4, got {' '.join(map(str, given.hops))}")
    if (given.proposer == "file") != bool(given.questions):
        raise ValueError("--questions must come with --from file, and --from file with it")
    if given.proposer in ("served", "local") and not given.model:
        raise ValueError(f"--from {given.proposer} must come with --model, who writes")
    if given.proposer == "served" and not given.url:
        raise ValueError("--from served must come with --url http://HOST:PORT/v1")
    if given.proposer == "local" and given.url:
        raise ValueError("--url must come with --from served, or with another proposer than local")
    if given.url and not given.model:
        raise ValueError("--url must come with --model, the model's name on that server")


def _settings(
    given: argparse.Namespace, questions: Sequence[Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what decides the outcome, and how earlier versions wrote the same."""
    from research_rl.envs.questions import content_hash
    from research_rl.envs.retrieval.index import index_contents
    from research_rl.trainers.settings import with_contents

    index = index_contents(given.index)
    known = {
        name: getattr(given, name)
        for name in ("proposer", "model", "hops", "top_k", "max_words", "val", "test", "seed")
    }
    known |= {"questions": content_hash(questions)} if given.questions else {}
    known |= {"corpus": index["corpus"]["sha256"], "index": index}
    formerly = [known, known | {"index": index["kind"]}]
    now = dict(known)
    if given.questions:
        steps = json.dumps([q.metadata.get("decomposition") for q in questions], default=str)
        now["steps"] = hashlib.sha256(steps.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if given.model:
        now |= {"api": given.api} if given.url else {"model": with_contents(given.model)}
    return now, formerly


def _make(given: argparse.Namespace) -> None:
    _check(given)
    from research_rl.envs.questions import read_questions
    from research_rl.envs.system import alone_in, progress_bar, write_whole
    from research_rl.trainers.make_questions.card import card_of_questions, making_record, way_on
    from research_rl.trainers.make_questions.checks import Limits
    from research_rl.trainers.make_questions.journal import MAKING, Journal
    from research_rl.trainers.make_questions.make import MakingPlan, make_questions, write_questions
    from research_rl.trainers.make_questions.metered import Metered

    shares = {"val": given.val, "test": given.test}
    limits = Limits(given.top_k, max(20, 2 * given.top_k), given.max_words)
    plan = MakingPlan(given.count, given.drafts, limits, shares, given.seed)
    questions = read_questions(given.questions) if given.questions else []
    settings, former = _settings(given, questions)
    with alone_in(given.out), Journal(given.out / MAKING, settings, former) as journal:
        generator = _generator(given)
        model = None if generator is None else Metered(generator, journal, given.budget)
        texts, facts, retriever = _opened(given)
        proposer = _proposer(given, questions, texts, facts, model)
        with progress_bar(desc="checking", unit=" drafts", disable=given.quiet) as bar:

            def advance(drafts: int, kept: int) -> None:
                bar.set_postfix_str(f"{kept} kept")
                bar.update(drafts - bar.n)

            made = make_questions(proposer, texts, facts, retriever, plan, journal, model, advance)
        counts = write_questions(made, texts, given.proposer, given.out)
        record = making_record(made, counts, settings, journal)
        spent = model is not None and model.spent
        card = card_of_questions(record, spent)
        write_whole(given.out / "card.md", card)
        write_whole(
            given.out / "card.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        )
    print(printable(card))
    if not made.kept:
        every = given.out / "refused.jsonl"
        raise ValueError(f"no question came through: {way_on(record)} ({every} has every draft)")
    print(printable(f"wrote {given.out}"))


def _opened(given: argparse.Namespace) -> tuple[Any, Any, Any]:
    from research_rl.envs import search_checked
    from research_rl.envs.retrieval.index import load_retriever, open_corpus_of
    from research_rl.trainers.make_questions.drafts import Texts
    from research_rl.trainers.make_questions.facts import Facts

    corpus, retriever = open_corpus_of(given.index), load_retriever(given.index)
    search_checked(retriever, ["first"], 1)  # what cannot be searched says so before long work
    texts = Texts(corpus)
    return texts, Facts(texts), retriever


def _generator(given: argparse.Namespace) -> Any:
    """Return the model that proposes, or only answers from memory; None without one."""
    if not given.model:
        return None
    from research_rl.agents.methods import LocalGenerator, OpenAIGenerator

    if given.url:
        return OpenAIGenerator(given.url, given.model, given.api)
    return LocalGenerator(given.model)


def _proposer(
    given: argparse.Namespace, questions: Sequence[Any], texts: Any, facts: Any, model: Any
) -> Any:
    from research_rl.trainers.make_questions.given import GivenQuestions
    from research_rl.trainers.make_questions.rules import RuleProposer
    from research_rl.trainers.make_questions.written import Written

    if given.proposer == "file":
        return GivenQuestions(questions, texts)
    if given.proposer == "rules":
        return RuleProposer(facts, given.hops, given.seed)
    return Written(facts, model, given.seed)


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research questions",
        description="Make multi-hop questions of an index, and check each against it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser("make", help="propose, check, split", allow_abbrev=False)
    add = make.add_argument
    add("--index", type=Path, required=True, help="folder that `research index build` made")
    add("--out", type=Path, required=True, help="folder of the questions")
    add(
        "--from",
        dest="proposer",
        choices=_PROPOSERS,
        default="rules",
        help="who proposes: rules (no model, default), served, local, or a file of questions",
    )
    add("--questions", help="with --from file: file, folder or Hub data set, perhaps with #SPLIT")
    add("--count", type=int, default=1000, help="questions at most (default: 1000)")
    add("--drafts", type=int, default=20_000, help="drafts at most (default: 20000)")
    add("--hops", type=int, nargs="+", default=[2], help="of the rules' questions (default: 2)")
    add("--top-k", type=int, default=5, help="passages of a search (default: 5)")
    add("--max-words", type=int, default=6, help="of an answer (default: 6)")
    add("--val", type=float, default=0.1, help="share of documents for validation (default: 0.1)")
    add("--test", type=float, default=0.2, help="share of documents for test (default: 0.2)")
    add("--seed", type=int, default=0, help="of order and split (default: 0)")
    add("--quiet", action="store_true", help="no progress bar")
    model = make.add_argument_group(
        "a model",
        "it writes with --from served or local; with rules and file it must not know the answers",
    ).add_argument
    model("--model", help="Hugging Face name or folder; with --url the name there")
    model("--url", help="of a server that speaks OpenAI's protocol")
    model("--api", choices=("chat", "completions"), default="chat", help="of it (default: chat)")
    model("--budget", type=int, default=1000, help="calls of the model at most (default: 1000)")
    make.set_defaults(run=_make)
    return parser

"""The command ``research collect``: it plays questions and keeps the rollouts worth imitating."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from research_rl.envs.system import CommandLine, printable, told_if_full, warn_of_room
from research_rl.trainers.settings import UsageError
from research_rl.trainers.usage import check_usage


def main(args: Sequence[str]) -> None:
    """Run ``research collect`` with these arguments."""
    own, rest = _parser().parse_known_args(args)
    if not any(arg.startswith(("-c", "--config")) for arg in rest):
        raise UsageError("collect must have a config, got none; try --config small_cpu")
    check_usage("fit", rest)
    from research_rl.envs.questions import read_questions
    from research_rl.trainers.demonstrations.collect import Collection, card_text, collect
    from research_rl.trainers.demonstrations.keep import Keep

    keep = Keep(
        own.min_reward, own.right, own.max_searches, own.min_searches, own.repeats, own.each
    )
    how = Collection(keep, own.samples, own.batch_size, own.wanted)
    run = _built(rest)
    if own.questions:
        questions = read_questions(own.questions)
    else:
        if run.datamodule.world is not None:
            run.datamodule.world.check()
        questions = run.datamodule.questions("train")
    questions = questions[: own.limit]
    settings, out = _settings(own, run, questions, how), Path(own.out)
    places = {"url": own.url} if own.source == "served" and own.url else {}
    warn_of_room(out, "a collection")
    with told_if_full(out, "the rollouts so far are kept"):
        card = collect(_source(own, run), questions, out, how, settings, places)
    print(printable(card_text(card)))
    print(f"written to {own.out}; research sft --data.train {own.out}/rollouts.jsonl imitates them")


def _settings(
    own: argparse.Namespace, run: Any, questions: Sequence[Any], how: Any
) -> dict[str, Any]:
    """What decides the outcome; of files also what is in them."""
    from research_rl.envs.protocols import spelled_out
    from research_rl.envs.questions import content_hash
    from research_rl.trainers.demonstrations.gold import evidence_hash
    from research_rl.trainers.settings import with_contents

    env, model = _plain(run.config["fit"]["model"]["env"]), run.model
    asked = [content_hash(questions)]
    settings = {
        "from": own.source,
        "questions": own.questions or "data.train",
        "questions_content": asked + [evidence_hash(questions)] * (own.source == "gold"),
        "limit": own.limit,
        "env": env,
        "index_content": with_contents(env.get("index")),
        "prompt_content": spelled_out(env.get("prompt", "base")),
        "quote": own.quote,
        **asdict(replace(how, wanted=None)),
    }
    if own.source != "gold":
        settings |= {
            "sampling": asdict(model.sampling),
            "model": own.served_model or model.policy_config.model,
            "seed": model.seed,
        }
    if own.source == "served":
        settings |= {"api": own.api, "dialect": own.dialect}
    if own.source == "policy":
        settings["policy_content"] = _policy_content(model.policy_config)
    return settings


def _policy_content(policy: Any) -> dict[str, Any]:
    """What of a policy decides its samples, beside its name."""
    from research_rl.envs.system import digest_stamp
    from research_rl.trainers.settings import weight_files

    names = ("tokenizer", "revision", "dtype")
    return {
        **{name: getattr(policy, name) for name in names},
        "chat_template": asdict(policy.chat_template),
        "files": [digest_stamp(file) for file in weight_files(Path(policy.model))],
    }


def _source(own: argparse.Namespace, run: Any) -> Any:
    """What plays, by ``--from``."""
    from research_rl.agents import LMPolicy, vector_rows
    from research_rl.agents.methods import OpenAIGenerator
    from research_rl.trainers.demonstrations.gold import GoldPlayer
    from research_rl.trainers.demonstrations.sources import FromGold, FromPolicy, FromServer

    model = run.model
    env = model.env_config.make()
    if own.source == "gold":
        task = vector_rows(env).task
        return FromGold(GoldPlayer(task.rules, task.retriever, task.top_k, own.quote))
    if own.source == "policy":
        policy = LMPolicy.from_config(model.policy_config)
        policy.eval()
        return FromPolicy(policy, model.make_engine(policy), env, model.sampling, model.seed)
    if not own.url or not own.served_model:
        raise UsageError("--from served must have --url and --served_model, got not both")
    generator = OpenAIGenerator(own.url, own.served_model, own.api, own.dialect)
    return FromServer(generator, env, model.sampling, model.seed)


def _built(args: Sequence[str]) -> Any:
    """The objects that ``research fit`` would have with these arguments; nothing is run."""
    from research_rl.trainers.cli import ResearchCLI, run, set_threads

    class Build(ResearchCLI):
        """Makes what a config names, and stops."""

        def before_instantiate_classes(self) -> None:
            """Check nothing, for no run begins; set the number of threads."""
            set_threads(self._option("torch_threads"))

        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:  # no run begins, so no word of one
            one.setLevel(logging.WARNING)
        return run(["fit", *args], cli=Build)
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _plain(value: Any) -> Any:
    """Settings as plain data, whatever jsonargparse holds them in."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    return value


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research collect",
        usage="research collect --config NAME --out DIR [options]",
        description="Play questions and keep the rollouts that are worth imitating. For example: "
        "research collect --config small_cpu --from gold --out demos. Environment, policy and "
        "sampling are those of the config; all options of `research fit` are taken, see "
        "research fit --help.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=["gold", "policy", "served"],
        default="gold",
        help="gold: the questions' own evidence, no model; policy: the config's model; served: a "
        "model behind OpenAI's protocol (default: gold)",
    )
    parser.add_argument("--out", required=True, help="folder of the demonstrations")
    parser.add_argument("--questions", help="question file (default: the config's data.train)")
    parser.add_argument("--limit", type=int, help="ask only so many questions, the first ones")
    parser.add_argument("--wanted", type=int, help="stop at so many demonstrations")
    parser.add_argument("--batch_size", type=int, default=64, help="questions played together (64)")
    parser.add_argument("--samples", type=int, default=1, help="plays of each question (1)")
    parser.add_argument("--each", type=int, default=1, help="rollouts kept of a question (1)")
    parser.add_argument("--min_reward", type=float, default=0.5, help="least reward (0.5)")
    parser.add_argument("--right", action="store_true", help="keep right answers alone")
    parser.add_argument("--max_searches", type=int, help="most searches of a rollout that is kept")
    parser.add_argument("--min_searches", type=int, default=0, help="least searches of it (0)")
    parser.add_argument("--repeats", action="store_true", help="allow a query to be asked twice")
    parser.add_argument(
        "--no_quote",
        dest="quote",
        action="store_false",
        help="gold: thoughts do not quote the sentence that they rest on",
    )
    parser.add_argument("--url", help="served: address of the server, http://host:port/v1")
    parser.add_argument(
        "--api", choices=["chat", "completions"], default="chat", help="of it (chat)"
    )
    parser.add_argument(
        "--dialect",
        choices=["openai", "vllm", "sglang"],
        default="openai",
        help="served: what the server understands beside the standard (openai)",
    )
    parser.add_argument("--served_model", help="served: name of the model there")
    return parser

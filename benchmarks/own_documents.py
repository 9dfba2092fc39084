"""From a folder of files to a search agent, measured on documents that it has not seen.

Every step is a command of docs/own-documents.md: files to passages, passages to an index, an index
to checked questions, their chains to demonstrations, imitation, then GRPO. The test questions are
about documents that no training question has.

    python benchmarks/own_documents.py                        # made-up pages, a tiny model
    python benchmarks/own_documents.py --model FOLDER --folder FILES --out runs/own
    python benchmarks/own_documents.py --model FOLDER --data DATA --size 600 --tokens 800 --test .35

``--data`` writes the paragraphs of data sets as pages of a folder and has their questions checked.
Without it and ``--folder`` the made-up world is written as pages of markdown, one a person. Without
``--model`` a tiny model of random weights stands in for a pretrained one: it first learns to read
pages of other worlds, whose people bear the same names, by questions of one to three searches. The
same command goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from real_exam import PROMPT, TOKENS, Exam, after_grpo, report
from real_model import FEW, Job, check_same, end_politely, research
from real_pages import write_real_pages
from real_questions import Row, read_rows, write_rows

from research_rl.agents import Rollout, TextOnly
from research_rl.envs import Question, Reward, Rules
from research_rl.envs.documents import build_documents
from research_rl.envs.protocols import get_prompt
from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index, load_retriever
from research_rl.envs.rewards import get_reward
from research_rl.envs.synthetic import RELATIONS, SyntheticWorld, query_of, write_pages
from research_rl.trainers.demonstrations.gold import GoldPlayer
from research_rl.trainers.warmstart import TAGS, TinyModelConfig, tiny_model, word_tokenizer

MARKS = (*TAGS, "'s", '"', "«", "»", ".", ",", "?", ":")
"""What the tiny model's tokenizer takes for words of their own."""
PEOPLE = 600
TINY = TinyModelConfig(hidden_size=128, num_layers=3, num_heads=4, max_length=640)


def make_questions(job: Job, folder: Path, args: argparse.Namespace) -> None:
    """Files to passages, an index and checked questions; nothing that is there is made again."""
    own = job.out / "own"
    top = ("--top-k", "1")
    if not (own / "index" / "manifest.json").is_file():
        corpus = str(own / "corpus.jsonl")
        more = ("--size", str(args.size), "--overlap", "0")
        research(own / "log.txt", "corpus", "build", str(folder), "--out", corpus, *more)
        index = ("--kind", "bm25", "--corpus", corpus, "--out", str(own / "index"))
        research(own / "log.txt", "index", "build", *index)
    if not (own / "questions" / "test.jsonl").is_file():
        given = ("--from", "file", "--questions", str(args.given))
        source = given if args.given else ("--hops", *args.hops)
        asked = ("--index", str(own / "index"), "--out", str(own / "questions"), "--count", "3000")
        with job.timed("questions"):
            research(
                own / "log.txt",
                *("questions", "make", *asked, *top, *source, "--test", args.test, "--quiet"),
            )
    if not (own / "audit.txt").is_file():
        test = ("--questions", str(own / "questions" / "test.jsonl"))
        research(own / "audit.txt", "data", "audit", *test, "--index", str(own / "index"), *top)


def read_other_worlds(job: Job, worlds: int, each: int, size: int) -> Path:
    """Make the tiny model and let it learn to read; return its folder.

    Args:
        job: where and how.
        worlds: whose facts are not those of the documents.
        each: questions about each of them, of one to three searches.
        size: characters of a passage.
    """
    start, demos = job.out / "random", job.out / "reading.jsonl"
    if not demos.is_file():
        played = (
            row for seed in range(1, worlds + 1) for row in other_chains(job, seed, each, size)
        )
        write_rows(demos, played)
    if not (start / "config.json").is_file():
        rollouts = str(job.out / "demonstrations" / "rollouts.jsonl")
        text = "\n".join(
            file.read_text(encoding="utf-8")
            for file in (demos, Path(rollouts), job.out / "own" / "corpus.jsonl")
        )
        words = re.findall(r"[^\W\d_]+", text.replace("\\n", " "))
        tokenizer = word_tokenizer([*MARKS, *dict.fromkeys(words)], MARKS)
        tokenizer.save_pretrained(start)
        tiny_model(tokenizer, TINY, job.seed).save_pretrained(start)
    steps = str(worlds * each // 64)
    return job.train(
        "reading",
        *("--model.policy.model", str(start), "--model.env.prompt", "{prompt}"),
        *("--model.env.index", str(job.out / "own" / "index"), "--data.train", str(demos)),
        *("--data.val", str(job.out / "own" / "questions" / "val.jsonl"), "--data.limit_val", FEW),
        *("--data.batch_size", "64", "--trainer.max_steps", steps),
        *("--trainer.val_check_interval", steps, "--model.optimizer.init_args.lr", "3e-3"),
        *("--model.policy.freeze_embeddings", "false", *falling(steps)),
        command="sft",
    )


def falling(steps: str) -> tuple[str, ...]:
    """Options of a learning rate that falls to a twentieth."""
    how = ("--model.lr_scheduler.init_args.total", steps)
    return ("--model.lr_scheduler", "WarmupDecay", *how)


def other_chains(job: Job, seed: int, number: int, size: int) -> Iterator[Row]:
    """Play questions of one to three searches about the pages of another world."""
    world, folder = SyntheticWorld(PEOPLE, 1000 * job.seed + seed), job.out / "others" / str(seed)
    build_documents(
        write_pages(world, folder / "pages"), folder / "corpus.jsonl", size=size, overlap=0
    )
    places = {}
    for row in read_rows(folder / "corpus.jsonl"):
        title, _, text = row["contents"].partition("\n")
        places |= {(r, title.strip('"')): row["id"] for r in RELATIONS if r in text}
    index = build_index(folder / "corpus.jsonl", folder / "index", kind="bm25")
    rules = Rules(get_prompt("{prompt}"), get_reward("default"), 3)
    player = GoldPlayer(rules, load_retriever(str(index)), 1)
    rng = random.Random(seed)
    asked = [chain_of(world, rng, places, f"{seed}-{count}") for count in range(number)]
    for question, played in zip(asked, player.play(asked), strict=True):
        if not isinstance(played, str):
            yield Rollout(
                question,
                TextOnly(),
                played.reward or Reward(0.0),
                [*played.turns],
                [*played.results],
                finish_reason="answer",
            ).to_row()


def chain_of(
    world: SyntheticWorld, rng: random.Random, places: Mapping[tuple[str, str], str], name: str
) -> Question:
    """Return a question about a chain of one to three relations, with its steps."""
    person, hops = rng.choice(world.names), rng.randint(1, 3)
    asked, steps = person, []
    for relation in rng.choices(RELATIONS, k=hops):
        asked = query_of(relation, asked)
        step = {"question": query_of(relation, person), "passage": places[relation, person]}
        steps.append(step | {"title": person, "answer": world.facts[relation, person]})
        person = world.facts[relation, person]
    known = {"decomposition": steps, "hops": hops}
    return Question(name, f"Who or what is {asked}?", (person,), known)


def shared_options(job: Job, tiny: bool, tokens: int) -> tuple[str, ...]:
    """Options that demonstrations, imitation and GRPO have in common."""
    own = job.out / "own"
    options = (
        *("--model.env.index", str(own / "index")),
        *("--data.val", str(own / "questions" / "val.jsonl")),
        *("--model.sampling.max_response_tokens", str(tokens)),
    )
    return (*options, "--model.env.prompt", "{prompt}") if tiny else options


def main() -> None:
    """Go from the files to the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="Hugging Face folder; without, a tiny one")
    parser.add_argument("--folder", type=Path, help="of documents; without, the world's pages")
    parser.add_argument("--data", type=Path, help="folder of data sets, to be written as pages")
    parser.add_argument("--given", type=Path, help="file of questions to be checked, not made")
    parser.add_argument("--hops", nargs="+", default=["2", "3"], help="of made questions (2 3)")
    parser.add_argument("--test", default="0.2", help="share of documents for the test (0.2)")
    parser.add_argument("--size", type=int, default=80, help="characters of a passage (80)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of a response ({TOKENS})")
    parser.add_argument("--out", type=Path, default=Path("runs/own"))
    parser.add_argument("--config", default="small_cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worlds", type=int, default=30, help="that the tiny model reads (30)")
    parser.add_argument("--each", type=int, default=2000, help="questions of each of them (2000)")
    parser.add_argument("--demonstrations", type=int, help="at most (320; of the tiny model 2000)")
    parser.add_argument("--epochs", type=int, default=3, help="of imitation")
    parser.add_argument("--iterations", type=int, default=25, help="of GRPO; 0 leaves it out")
    parser.add_argument("--questions", type=int, default=300, help="of the exam, at most")
    parser.add_argument("fit", nargs="*", help="behind --: more options of the GRPO run")
    args = parser.parse_args()
    if args.data and (args.folder or args.given):
        parser.error("--data brings pages and questions; leave out --folder and --given, or --data")
    args.demonstrations = args.demonstrations or (320 if args.model else 2000)
    end_politely()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    check_same(args.out, vars(args), parser)
    job = Job(
        args.out, args.model, args.config, args.seed, args.epochs, args.iterations, tuple(args.fit)
    )
    if args.data:
        folder, args.given = write_real_pages(args.data, args.out)
    else:
        folder = args.folder or write_pages(SyntheticWorld(PEOPLE), args.out / "pages")
    make_questions(job, folder, args)
    measure(job, args)


def measure(job: Job, args: argparse.Namespace) -> None:
    """Demonstrations, imitation, GRPO and the exam."""
    tiny, out = not job.model, job.out
    questions, demos = out / "own" / "questions", out / "demonstrations"
    options = shared_options(job, tiny, args.tokens)
    if not (demos / "done").is_file():
        asked = (
            "--questions",
            str(questions / "train.jsonl"),
            "--wanted",
            str(args.demonstrations),
        )
        with job.timed("collect"):
            research(
                out / "collect.log",
                *("collect", "--config", job.config, *options, "--out", str(demos), *asked),
            )
        (demos / "done").touch()
    start = str(read_other_worlds(job, args.worlds, args.each, args.size)) if tiny else job.model
    shown = len(read_rows(demos / "rollouts.jsonl")[: args.demonstrations])
    batch = 32 if tiny else 16
    steps = str(max(1, job.epochs * shown // batch))
    rates = ("1e-3", "5e-4") if tiny else ("2e-4", "4e-5")
    sft = job.train(
        "sft",
        *("--model.policy.model", start, *options, "--data.limit_val", FEW),
        *("--data.train", str(demos / "rollouts.jsonl"), "--data.batch_size", str(batch)),
        *("--trainer.max_steps", steps, "--trainer.val_check_interval", steps),
        *("--model.optimizer.init_args.lr", rates[0], *falling(steps)),
    )
    after = job.grpo(
        *("--model.policy.model", str(sft), *options, "--trainer.val_check_interval", "10"),
        *("--data.train", str(questions / "train.jsonl")),
        *("--model.optimizer.init_args.lr", rates[1]),
    )
    test = list(read_questions(str(questions / "test.jsonl")))[: args.questions]
    exam = Exam(
        out / "exam",
        str(out / "own" / "index"),
        test,
        max_searches=3,
        prompt="{prompt}" if tiny else PROMPT,
        tokens=args.tokens,
        search_now="<think> I need to know about it. </think>",
        answer_now="<think> So I know the answer. </think> <answer> The answer is \\boxed{",
    )
    last, two = after or sft, replace(exam, max_searches=2)
    policies = [
        ("before", exam.search("before", start)),
        ("after SFT", exam.search("after SFT", sft)),
        ("after SFT, sampled", exam.sampled("after SFT", sft)),
        ("after SFT, naive RAG", exam.naive_rag("naive RAG before", sft)),
        ("after SFT, closed book", exam.closed_book("closed book before", sft)),
        *after_grpo(exam, after),
        ("the same weights, two searches at most", two.search("two searches", last)),
    ]
    report(out, policies, hops=sorted({int(q.metadata["hops"]) for q in test}))


if __name__ == "__main__":
    main()

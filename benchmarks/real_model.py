"""A pretrained model learns to search: cold start, then GRPO, on a made-up world and on real text.

Two rungs, each a few commands of ``research`` and an exam before and after:

- ``world``: the people of the quickstart. 320 of its demonstrations, of which one in five searches
  rightly, then GRPO. Reading is easy there, so what is seen is whether the model learns to search.
- ``questions``: HotpotQA, 2WikiMultihopQA and MuSiQue with paragraphs cut to 40 words. Gold
  demonstrations, then GRPO. The questions of demonstrations, of GRPO, of validation and of the test
  are four disjoint sets; the test questions choose nothing.

    python benchmarks/real_model.py --model FOLDER --data DATA --out runs/real

FOLDER is a Hugging Face folder of a causal model, DATA holds ``hotpotqa_questions.jsonl``,
``hotpotqa_corpus.jsonl`` and so on in FlashRAG's layout. The same command goes on where a killed
one stopped: finished stages are kept, a training goes on from its last checkpoint. Each rung writes
a report, in Markdown and in JSON, and ``curve.png``.

On a GPU: ``--model Qwen/Qwen2.5-0.5B --config CONFIG``, where CONFIG is a copy of ``small_cpu``
with ``accelerator: gpu`` and ``policy.dtype: bfloat16``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import yaml

from research_rl.agents import (
    CachedEngine,
    LMPolicy,
    PolicyConfig,
    Rollout,
    SamplingParams,
    TextOnly,
    collect_rollouts,
    fast_dtype,
)
from research_rl.agents.policy import WeightDtype
from research_rl.envs import Question, Reward
from research_rl.envs.protocols import get_prompt, render_result
from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import load_retriever
from research_rl.envs.rewards import exact_match, f1_score
from research_rl.envs.synthetic import SyntheticWorld
from research_rl.trainers.callbacks.plots import learning_curves
from research_rl.trainers.evaluate.measures import bootstrap_interval, paired_test
from research_rl.trainers.warmstart.demonstrations import Demonstrator

SETS = ("hotpotqa", "2wikimultihopqa", "musique")
WORDS = 40  # of a paragraph that are kept
PROMPT = "Question: {prompt}\n"
TOKENS = 420  # of a response, results included
FEW = "16"  # validation questions of a cold start: an untrained model writes on to the last token
AT_ONCE = 64  # questions that an exam plays together
ANSWER_NOW = "<think> I know the answer. </think> <answer> The answer is \\boxed{"
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Where one rung works and how.

    Args:
        out: folder of the rung.
        model: the pretrained model.
        config: shipped config, or file, that both trainings begin from.
        seed: of everything.
        epochs: how often the cold start sees each demonstration.
        iterations: of GRPO; 0 leaves it out.
        settings: more options of the GRPO run, as ``research fit`` takes them.
    """

    out: Path
    model: str
    config: str
    seed: int
    epochs: int
    iterations: int
    settings: tuple[str, ...] = ()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds inside to those that the stage has taken before, killed or not."""
        file, start = self.out / "seconds.json", time.perf_counter()
        try:
            yield
        finally:
            spent: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
            spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - start
            file.write_text(json.dumps(spent, indent=2))

    def grpo(self, *options: str) -> Path | None:
        """Run GRPO, unless it is left out; return the folder of the policy."""
        if not self.iterations:
            return None
        return self.train(
            "grpo",
            *("--data.batch_size", "8", "--trainer.max_steps", str(self.iterations)),
            *("--model.algorithm", "GRPO", "--model.algorithm.init_args.kl_coef", "0.0"),
            *options,
            *self.settings,
        )

    def train(self, stage: str, *options: str) -> Path:
        """Run ``research sft`` or ``research fit`` to its end; return the folder of the policy."""
        folder = self.out / stage
        if not (folder / "done").is_file():
            command = "sft" if stage == "sft" else "fit"
            last = folder / "checkpoints" / "last.ckpt"
            more = ["--ckpt_path", "last"] if last.exists() else []
            with self.timed(stage):
                research(
                    folder / "log.txt",
                    command,
                    *("--config", self.config, "--seed_everything", str(self.seed)),
                    *("--trainer.default_root_dir", str(folder), *options, *more),
                )
            (folder / "done").touch()
        return folder / "policy"


def research(log: Path, *command: str) -> None:
    """Run a command of the console script; its output goes to the end of ``log``.

    Raises:
        RuntimeError: it failed; the last lines of its output are shown.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print("research", " ".join(command), flush=True)
    with log.open("a") as file:
        full = [sys.executable, "-m", "research_rl.trainers.cli", *command]
        code = subprocess.run(full, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise RuntimeError(f"research {command[0]} ended with {code}:\n" + "\n".join(tail))


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write rows of JSON beside the file, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".partial")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    beside.write_text("".join(lines), encoding="utf-8")
    beside.rename(file)


def read_rows(file: Path) -> list[Row]:
    """Read rows of JSON."""
    lines = file.read_text(encoding="utf-8").split("\n")  # a text may hold other ends of lines
    return [json.loads(line) for line in lines if line]


# The exam


@dataclass(frozen=True)
class Exam:
    """Asks the test questions, greedily, and keeps a row for each.

    Args:
        out: folder of the rows, one file a policy.
        index: what is searched.
        questions: that no training has seen.
        max_searches: of an episode.
    """

    out: Path
    index: str
    questions: Sequence[Question]
    max_searches: int

    def search(self, name: str, folder: str | Path, limit: int | None = None) -> list[Row]:
        """Let a policy answer as it is trained to."""
        return self._kept(name, folder, self._searched, self.questions[:limit])

    def closed_book(self, name: str, folder: str | Path) -> list[Row]:
        """Make a policy answer at once."""
        return self._kept(name, folder, self._at_once, self.questions)

    def naive_rag(self, name: str, folder: str | Path) -> list[Row]:
        """Make a policy answer behind one search with the question itself."""
        return self._kept(name, folder, self._behind_one, self.questions)

    def _kept(
        self,
        name: str,
        folder: str | Path,
        ask: Callable[..., list[Row]],
        asked: Sequence[Question],
    ) -> list[Row]:
        file = self.out / f"{name}.jsonl"
        if not file.is_file():
            policy = LMPolicy.from_config(PolicyConfig(str(folder), dtype=_quickest()))
            policy.eval()
            rows: list[Row] = []
            for start in range(0, len(asked), AT_ONCE):
                rows += ask(policy, asked[start : start + AT_ONCE])
                print(f"{name}: {len(rows)} of {len(asked)} questions", flush=True)
            write_rows(file, rows)
        return read_rows(file)

    def _searched(self, policy: LMPolicy, questions: Sequence[Question]) -> list[Row]:
        env = gym.make_vec(
            "research_rl.envs:ReSearch-v0",
            num_envs=1,
            autoreset_mode="Disabled",
            index=self.index,
            top_k=1,
            max_searches=self.max_searches,
            prompt=PROMPT,
        )
        params = SamplingParams(TOKENS, temperature=0.0)
        played = collect_rollouts(questions, env, policy, CachedEngine(policy), params, None)
        return [_row(rollout) for rollout in played]

    def _at_once(self, policy: LMPolicy, questions: Sequence[Question]) -> list[Row]:
        return _completed(policy, questions, [ANSWER_NOW] * len(questions), 0)

    def _behind_one(self, policy: LMPolicy, questions: Sequence[Question]) -> list[Row]:
        found = load_retriever(self.index).search([q.text for q in questions], 1)
        begun = [
            f"<think> I search for the question. </think> <search> {q.text} </search>"
            f"{render_result(passages)}\n{ANSWER_NOW}"
            for q, passages in zip(questions, found, strict=True)
        ]
        return _completed(policy, questions, begun, 1)


def _quickest() -> WeightDtype:
    """The dtype in which this machine answers fastest."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if fast_dtype(device) == torch.bfloat16 else "float32"


def _row(rollout: Rollout) -> Row:
    """One answered question as a row; ``named`` is the share of queries with a gold title."""
    titles = [t.casefold() for t in rollout.question.metadata.get("supporting_titles", ())]
    queries = [query.casefold() for query in rollout.queries]
    named = [any(title.partition(" (")[0] in query for title in titles) for query in queries]
    return {
        "id": rollout.question.id,
        "hops": rollout.question.metadata.get("hops"),
        # the published measures, as of those who are made to answer
        "f1": f1_score(rollout.reward.prediction, rollout.question.answers),
        "em": float(exact_match(rollout.reward.prediction, rollout.question.answers)),
        "form": float(rollout.reward.format_error is None),
        "searches": float(rollout.num_searches),
        "named": sum(named) / len(named) if titles and named else None,
        "text": [*rollout.turns],
    }


def _completed(
    policy: LMPolicy, questions: Sequence[Question], begun: Sequence[str], searches: int
) -> list[Row]:
    """Let the policy finish a response up to the closing brace of its answer."""
    prompt = get_prompt(PROMPT)
    prompts = [
        policy.encode_prompt(prompt, q.text) + policy.encode(text)
        for q, text in zip(questions, begun, strict=True)
    ]
    written = CachedEngine(policy).run(
        prompts, SamplingParams(24, temperature=0.0), lambda stopped: [None] * len(stopped)
    )
    guesses = [policy.decode(s.response_ids).partition("}")[0] for s in written]
    return [
        {
            "id": q.id,
            "hops": q.metadata.get("hops"),
            "f1": f1_score(guess, q.answers),
            "em": float(exact_match(guess, q.answers)),
            "searches": float(searches),
            "text": [guess],
        }
        for q, guess in zip(questions, guesses, strict=True)
    ]


# The made-up world


def world_rung(job: Job, demonstrations: int, questions: int) -> None:
    """Cold start and GRPO among made-up people.

    Args:
        job: where and how.
        demonstrations: of the cold start, one in five of which searches rightly.
        questions: of the exam, of each number of hops.
    """
    world, folder = SyntheticWorld(), job.out / "world"
    options = {
        "data": {"world": {"folder": str(folder), "num_train": 3000, "num_val": 32}},
        "model": {"env": {"index": f"{folder}/index", "max_searches": 4, "prompt": PROMPT}},
    }
    shared = job.out / "world.yaml"
    job.out.mkdir(parents=True, exist_ok=True)
    shared.write_text(yaml.safe_dump(options))
    demos = job.out / "demonstrations.jsonl"
    if not demos.is_file():
        write_rows(demos, _demonstrations(world, demonstrations, job.seed))
    steps = str(job.epochs * demonstrations // 16)
    sft = job.train(
        "sft",
        *("--config", str(shared), "--data.train", str(demos), "--trainer.max_steps", steps),
        *("--model.policy.model", job.model, "--model.optimizer.init_args.lr", "2e-4"),
        *("--trainer.val_check_interval", steps, "--data.batch_size", "16"),
        *("--data.limit_val", FEW),
    )
    asked = [q for hops in (1, 2) for q in world.sample("test", hops, questions)]
    exam = Exam(job.out / "exam", f"{folder}/index", asked, max_searches=4)
    after = job.grpo(
        *("--config", str(shared), "--model.policy.model", str(sft)),
        *("--trainer.val_check_interval", "5", "--data.world.train_hops", "{1: 1.0, 2: 4.0}"),
        *("--model.optimizer.init_args.lr", "4e-5"),
    )
    policies = [("after SFT", exam.search("after SFT", sft)), *after_grpo(exam, after)]
    report(job, policies, hops=(1, 2))


def _demonstrations(world: SyntheticWorld, number: int, seed: int) -> Iterator[Row]:
    """The quickstart's demonstrations as rows of a rollout file; nobody has judged them."""
    make = Demonstrator(world.names, world.facts, good_share=0.2, max_searches=4, seed=seed)
    for count in range(number):
        shown = make()
        turns = [turn if not i else f"\n{turn}" for i, turn in enumerate(shown.turns)]
        yield Rollout(
            Question(f"demonstration-{count}", shown.question, ()),
            TextOnly(),
            Reward(0.0),
            turns,
            list(shown.results),
            finish_reason="answer",
        ).to_row()


# Real questions


def questions_rung(job: Job, data: Path, demonstrations: int, tested: int) -> None:
    """Cold start and GRPO on real questions and paragraphs.

    Args:
        job: where and how.
        data: folder of questions and corpora in FlashRAG's layout.
        demonstrations: of the cold start, at most.
        tested: questions of the exam.
    """
    made, index, demos = job.out / "data", job.out / "index", job.out / "demonstrations"
    if not (made / "test.jsonl").is_file():
        prepare(data, made, tested)
    if not (index / "manifest.json").is_file():
        log, corpus = job.out / "index.log", str(made / "corpus.jsonl")
        research(log, "index", "build", "--kind", "bm25", "--corpus", corpus, "--out", str(index))
    env = (
        "--config",
        job.config,
        "--model.env.index",
        str(index),
        "--model.policy.model",
        job.model,
    )
    if not (demos / "done").is_file():
        with job.timed("collect"):
            asked = ("--questions", str(made / "shown.jsonl"), "--wanted", str(demonstrations))
            research(job.out / "collect.log", "collect", *env, "--out", str(demos), *asked)
        (demos / "done").touch()
    val = ("--data.val", str(made / "val.jsonl"))
    steps = job.epochs * len(read_rows(demos / "rollouts.jsonl")[:demonstrations]) // 8
    sft = job.train(
        "sft",
        *("--data.train", str(demos / "rollouts.jsonl"), "--data.batch_size", "8", *env[2:], *val),
        *("--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)),
        *("--model.optimizer.init_args.lr", "2e-4", "--data.limit_val", FEW),
    )
    exam = Exam(job.out / "exam", str(index), list(read_questions(str(made / "test.jsonl"))), 3)
    after = job.grpo(
        *("--data.train", str(made / "train.jsonl"), *env[2:], *val),
        *("--model.policy.model", str(sft), "--trainer.val_check_interval", "10"),
        *("--model.optimizer.init_args.lr", "5e-5"),
    )
    policies = [
        ("zero-shot, 64 questions", exam.search("zero-shot", job.model, limit=64)),
        ("after SFT", exam.search("after SFT", sft)),
        ("after SFT, closed book", exam.closed_book("closed book before", sft)),
        ("after SFT, naive RAG", exam.naive_rag("naive RAG before", sft)),
        *after_grpo(exam, after),
    ]
    report(job, policies, hops=(2, 3, 4))


def prepare(data: Path, out: Path, tested: int) -> None:
    """Write a corpus of short paragraphs and four disjoint files of questions.

    A question is kept if one of its answers stands in its own paragraphs after they were cut, or is
    yes or no. ``test.jsonl`` has ``tested`` of them, ``val.jsonl`` 100; of the rest two in three
    may be shown (``shown.jsonl``) and one in three is for GRPO (``train.jsonl``).
    """
    corpus: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name in SETS:
        for row in read_rows(data / f"{name}_corpus.jsonl"):
            title, _, body = row["contents"].partition("\n")
            cut = " ".join(body.split()[:WORDS])
            corpus.setdefault(f"{title}\n{cut}", str(len(corpus)))
            texts[title.strip('"')] = texts.get(title.strip('"'), "") + cut + "\n"
    asked = []
    for name in SETS:
        for row in read_rows(data / f"{name}_questions.jsonl"):
            own = " ".join(texts.get(t, "") for t in row["metadata"].get("supporting_titles", ()))
            answers = row["golden_answers"]
            closed = answers[0].casefold() in ("yes", "no")
            if closed or any(a.casefold() in own.casefold() for a in answers):
                asked.append({**row, "id": f"{name}/{row['id']}"})
    random.Random("split").shuffle(asked)
    test, val, rest = asked[:tested], asked[tested : tested + 100], asked[tested + 100 :]
    cut_at = 2 * len(rest) // 3
    parts = {"shown": rest[:cut_at], "train": rest[cut_at:], "val": val, "test": test}
    write_rows(out / "corpus.jsonl", ({"id": i, "contents": c} for c, i in corpus.items()))
    for part, rows in parts.items():  # test.jsonl comes last and says that all are there
        write_rows(out / f"{part}.jsonl", rows)
    print({part: len(rows) for part, rows in parts.items()}, f"{len(corpus)} passages", flush=True)


def after_grpo(exam: Exam, policy: Path | None) -> list[tuple[str, list[Row]]]:
    """Return what the trained policy answers, and its controls."""
    if policy is None:
        return []
    return [
        ("after GRPO", exam.search("after GRPO", policy)),
        ("after GRPO, closed book", exam.closed_book("closed book", policy)),
        ("after GRPO, naive RAG", exam.naive_rag("naive RAG", policy)),
    ]


# The report


def report(job: Job, policies: Sequence[tuple[str, list[Row]]], hops: Sequence[int]) -> None:
    """Write the table, the paired test and the curve of a rung, and print the first two."""
    names = ("f1", "em", "form", "searches", "named")
    columns = ["policy", "questions", *names, *(f"f1, {h} hops" for h in hops)]
    columns += [f"searches, {h} hops" for h in hops]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for policy, rows in policies:
        cells = [policy, str(len(rows)), *(_interval(rows, name) for name in names)]
        for name in ("f1", "searches"):
            cells += [_mean([r for r in rows if r["hops"] == h], name) for h in hops]
        lines.append(f"| {' | '.join(cells)} |")
    spent = json.loads((job.out / "seconds.json").read_text())
    lines += ["", "Minutes: " + ", ".join(f"{k} {v / 60:.1f}" for k, v in spent.items())]
    of = {policy: {row["id"]: row["f1"] for row in rows} for policy, rows in policies}
    test = paired_test(of.get("after GRPO", {}), of["after SFT"])
    if test.p_value is not None:
        lines += [
            "",
            f"F1 after GRPO less F1 after SFT, on the same {test.n} questions: "
            f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f}, paired permutation test "
            f"p = {test.p_value:.4f})",
        ]
    text = "\n".join(lines)
    (job.out / "report.md").write_text(text + "\n")
    rows = {
        policy: [{k: v for k, v in r.items() if k != "text"} for r in rows]
        for policy, rows in policies
    }
    (job.out / "report.json").write_text(json.dumps({"rows": rows, "paired": vars(test)}))
    if job.iterations:
        learning_curves([job.out / "grpo" / "metrics.csv"], job.out / "curve.png")
    print(text, flush=True)


def _interval(rows: Sequence[Row], name: str) -> str:
    found = bootstrap_interval([row.get(name) for row in rows])
    if found.mean is None:
        return ""
    return f"{found.mean:.2f} ({found.low:.2f}-{found.high:.2f})"


def _mean(rows: Sequence[Row], name: str) -> str:
    return f"{sum(r[name] for r in rows) / len(rows):.2f}" if rows else ""


def check_same(out: Path, asked: Row, parser: argparse.ArgumentParser) -> None:
    """Refuse a folder whose stages were made with other options; GRPO may be added to it."""
    now = {k: str(v) for k, v in asked.items() if k not in ("rungs", "out", "data")}
    file = out / "options.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else now
    if before.get("iterations") == "0":
        before |= {name: now[name] for name in ("iterations", "fit")}
    if other := [name for name in now if before.get(name) != now[name]]:
        parser.error(
            f"{out} was begun with --{other[0]} {before.get(other[0])}, got {now[other[0]]}; take "
            "another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=2), encoding="utf-8")


def main() -> None:
    """Climb the rungs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder or name")
    parser.add_argument(
        "--data", type=Path, help="folder of questions and corpora; for `questions`"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--rungs", nargs="+", choices=("world", "questions"), default=["world"])
    parser.add_argument("--config", default="small_cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--demonstrations", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=1, help="of the cold start")
    parser.add_argument("--questions", type=int, help="of the exam (200 a hop; 300 real ones)")
    parser.add_argument("--iterations", type=int, default=60, help="of GRPO; 0 leaves it out")
    parser.add_argument("fit", nargs="*", help="behind --: more options of the GRPO run")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for rung in args.rungs:
        out = args.out / f"{rung}-seed-{args.seed}"
        check_same(out, vars(args), parser)
        job = Job(
            out, args.model, args.config, args.seed, args.epochs, args.iterations, tuple(args.fit)
        )
        if rung == "world":
            world_rung(job, args.demonstrations, args.questions or 200)
        elif args.data is None:
            parser.error("--data must name a folder for the rung `questions`, got none")
        else:
            questions_rung(job, args.data, args.demonstrations, args.questions or 300)


if __name__ == "__main__":
    main()

"""A pretrained model learns to search: cold start, then GRPO, on a made-up world and on real text.

Two rungs, each a few commands of ``research`` and an exam before and after:

- ``world``: the people of the quickstart. 320 of its demonstrations, of which one in five searches
  rightly, then GRPO. Reading is easy there, so what is seen is whether the model learns to search.
- ``questions``: HotpotQA, 2WikiMultihopQA and MuSiQue with paragraphs cut to 40 words. Gold
  demonstrations, then GRPO. The questions of demonstrations, of GRPO, of validation and of the test
  are four disjoint sets; the test questions choose nothing. ``--further FILE ...`` adds questions
  without paragraphs to those of GRPO, where the corpus reaches their answers. With ``--found`` GRPO
  asks no question that can be guessed: yes or no, or one of the things that the question names.

    python benchmarks/real_model.py --model FOLDER --data DATA --out runs/real

FOLDER is a Hugging Face folder of a causal model, DATA holds ``hotpotqa_questions.jsonl``,
``hotpotqa_corpus.jsonl`` and so on in FlashRAG's layout. The same command goes on where a killed
one stopped: finished stages are kept, a training goes on from its last checkpoint. With more
``--iterations`` it goes on behind the last one; what the policy answered there stays in a folder
``exam/iteration-N``. Each rung writes a report, in Markdown and in JSON, and ``curve.png``.

On a GPU: ``--model Qwen/Qwen2.5-0.5B --config CONFIG``, where CONFIG is a copy of ``small_cpu``
with ``accelerator: gpu`` and ``policy.dtype: bfloat16``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from real_exam import AFTER_GRPO, PROMPT, Exam, after_grpo, report
from real_questions import Row, must_be_found, prepare, read_rows, write_rows

from research_rl.agents import Rollout, TextOnly
from research_rl.envs import Question, Reward
from research_rl.envs.questions import read_questions
from research_rl.envs.synthetic import SyntheticWorld
from research_rl.trainers.callbacks.plots import read_metrics
from research_rl.trainers.warmstart.demonstrations import Demonstrator

FEW = "16"  # validation questions of a cold start: an untrained model writes on to the last token


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
        """Run GRPO, on from an earlier call with fewer iterations; return the policy's folder."""
        if not self.iterations:
            return None
        done, exam = self.out / "grpo" / "done", self.out / "exam"
        if done.is_file() and (made := self.iterations_made()) < self.iterations:
            set_aside(exam, exam / f"iteration-{made}")
            done.unlink()
        policy = self.train(
            "grpo",
            *("--data.batch_size", "16", "--trainer.max_steps", str(self.iterations)),
            *("--model.algorithm", "GRPO", "--model.algorithm.init_args.kl_coef", "0.0"),
            *("--model.algorithm.init_args.scale_by_std", "false"),
            *options,
            *self.settings,
        )
        done.write_text(str(self.iterations))
        return policy

    def iterations_made(self) -> int:
        """How many iterations a finished GRPO has; folders of before do not say it in ``done``."""
        if said := (self.out / "grpo" / "done").read_text():
            return int(said)
        return len(read_metrics(self.out / "grpo" / "metrics.csv")["train/reward"].values)

    def train(self, stage: str, *options: str, command: str = "") -> Path:
        """Run ``research sft`` or ``research fit`` to its end; return the folder of the policy.

        Args:
            stage: name of its folder.
            options: of the command.
            command: which one it is, unless the stage's name says it.
        """
        folder = self.out / stage
        if not (folder / "done").is_file():
            command = command or ("sft" if stage == "sft" else "fit")
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


def set_aside(exam: Path, folder: Path) -> None:
    """Move what a policy answered after GRPO, so that it is asked again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in AFTER_GRPO:
        if (file := exam / f"{name}.jsonl").is_file():
            file.rename(folder / file.name)


def end_politely() -> None:
    """Let SIGTERM end this process as Ctrl-C does: commands are told, their seconds are kept."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def research(log: Path, *command: str) -> None:
    """Run a command of the console script; its output goes to the end of ``log``.

    Raises:
        RuntimeError: it failed; the last lines of its output are shown.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print("research", " ".join(command), flush=True)
    with log.open("a") as file:
        full = [sys.executable, "-m", "research_rl.trainers.cli", *command]
        with subprocess.Popen(full, stdout=file, stderr=subprocess.STDOUT) as running:
            try:
                code = running.wait()
            except BaseException:
                running.terminate()  # a training saves itself, and goes on at the next call
                raise
    if code:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise RuntimeError(f"research {command[0]} ended with {code}:\n" + "\n".join(tail))


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
        *("--trainer.val_check_interval", "5", "--data.world.train_hops", "{1: 1.0, 2: 2.0}"),
        *("--model.optimizer.init_args.lr", "4e-5", "--data.limit_val", "32"),
    )
    policies = [
        ("after SFT", exam.search("after SFT", sft)),
        ("after SFT, sampled", exam.sampled("after SFT", sft)),
        *after_grpo(exam, after),
    ]
    report(job.out, policies, hops=(1, 2))


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


def questions_rung(
    job: Job, data: Sequence[Path], demonstrations: int, tested: int, found: bool
) -> None:
    """Cold start and GRPO on real questions and paragraphs.

    Args:
        job: where and how.
        data: folder of questions and corpora in FlashRAG's layout, then files of more questions.
        demonstrations: of the cold start, at most.
        tested: questions of the exam.
        found: whether GRPO asks only where the answer must be found, see ``prepare``.
    """
    made, index, demos = job.out / "data", job.out / "index", job.out / "demonstrations"
    if not (made / "test.jsonl").is_file():
        prepare(data[0], made, tested, data[1:], found)
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
        ("after SFT, sampled", exam.sampled("after SFT", sft)),
        ("after SFT, closed book", exam.closed_book("closed book before", sft)),
        ("after SFT, naive RAG", exam.naive_rag("naive RAG before", sft)),
        *after_grpo(exam, after),
    ]
    sought = {row["id"] for row in read_rows(made / "test.jsonl") if must_be_found(row)}
    report(job.out, policies, hops=(2, 3, 4), sought=sought)


def check_same(out: Path, asked: Row, parser: argparse.ArgumentParser) -> None:
    """Refuse a folder whose stages were made with other options; GRPO may go on from it."""
    now = {k: str(v) for k, v in asked.items() if k not in ("rungs", "out", "data", "further")}
    file = out / "options.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else now
    if before.get("iterations") == "0":
        before |= {name: now[name] for name in ("iterations", "fit")}
    if int(before.get("iterations", 0)) < int(now.get("iterations", 0)):
        before["iterations"] = now["iterations"]
    for name, value in now.items():
        if (begun := before.get(name, str(parser.get_default(name)))) != value:
            parser.error(f"{out} was begun with --{name} {begun}, got {value}; take another --out")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=2), encoding="utf-8")


def main() -> None:
    """Climb the rungs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder or name")
    parser.add_argument(
        "--data", type=Path, help="folder of questions and corpora; for `questions`"
    )
    parser.add_argument("--further", type=Path, nargs="+", default=[], help="more questions, JSONL")
    parser.add_argument("--found", action="store_true", help="leave out what can be guessed")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--rungs", nargs="+", choices=("world", "questions"), default=["world"])
    parser.add_argument("--config", default="small_cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--demonstrations", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=3, help="of the cold start")
    parser.add_argument("--questions", type=int, help="of the exam (200 a hop; 300 real ones)")
    parser.add_argument("--iterations", type=int, default=25, help="of GRPO; 0 leaves it out")
    parser.add_argument("fit", nargs="*", help="behind --: more options of the GRPO run")
    args = parser.parse_args()
    end_politely()
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
            files = (args.data, *args.further)
            tested = args.questions or 300
            questions_rung(job, files, args.demonstrations, tested, args.found)


if __name__ == "__main__":
    main()

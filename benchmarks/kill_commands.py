"""Kill commands at random moments, give the same command again, and compare what it leaves.

    python benchmarks/kill_commands.py --out runs/kill-commands --kills 30

Each command of COMMANDS runs once alone. Then it is started, killed (SIGKILL) at a moment drawn
from ``--seed``, and started again with the same words until it ends. A command that does not go on
by itself must say in its error what to add (``--overwrite``), which is then added. What it leaves
is compared, file by file, with what the run left that was alone; times are left out. Exit status 1
says that something differed. A command that this version lacks is passed over and named.

kills.py looks deeper into one command, ``fit``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from kills import outcome, start, wait, write_config

from research_rl.envs.synthetic import SyntheticWorld

_TIMES = re.compile(
    r'"(?:\w*seconds|created|mtime_ns|mark|started|ended|time|finished|read_again)": ?[^,}\n]+'
)
_WAYS = ("--overwrite",)
"""What an error may tell a user to add."""


@dataclass
class Kill:
    """One kill: when, what lay there, how the command went on, and what differs."""

    command: str
    after_s: float
    of_s: float
    left: str
    went_on: str
    differs: list[str]


Words = Callable[[Path, Path], list[str]]


def fit(out: Path, made: Path) -> list[str]:
    """The quickstart made small, as in kills.py."""
    small = ["--config", "quickstart", "--config", str(made / "small.yaml")]
    return ["fit", *small, "--trainer.default_root_dir", str(out), "--ckpt_path", "last"]


def sft(out: Path, made: Path) -> list[str]:
    """Imitate demonstrations with the model of the warm start."""
    words = ["sft", "--config", "small_cpu", "--config", str(made / "sft.yaml")]
    words += ["--data.train", str(made / "demonstrations" / "rollouts.jsonl")]
    return [*words, "--trainer.default_root_dir", str(out), "--ckpt_path", "last"]


def collect(out: Path, made: Path) -> list[str]:
    """Play questions with the model of the warm start."""
    words = ["collect", "--config", str(made / "fit" / "config.yaml"), "--from", "policy"]
    return [*words, "--limit", "48", "--batch_size", "8", "--min_reward", "0", "--out", str(out)]


def index_build(out: Path, made: Path) -> list[str]:
    """Index passages densely and by words."""
    words = ["index", "build", "--corpus", str(made / "corpus.jsonl"), "--kind", "hybrid"]
    return [*words, "--quiet", "--out", str(out)]


def index_add(out: Path, made: Path) -> list[str]:
    """Add passages to an index."""
    if not out.exists():
        shutil.copytree(made / "index build", out)
    return ["index", "add", str(out), "--corpus", str(made / "more.jsonl")]


def evaluate(out: Path, made: Path) -> list[str]:
    """Compare two methods on a world."""
    return ["evaluate", "--config", str(made / "evaluate.yaml"), "--out", str(out)]


def questions_make(out: Path, made: Path) -> list[str]:
    """Make questions of pages about made-up people."""
    index = ["--index", str(made / "people"), "--drafts", "2000", "--quiet"]
    return ["questions", "make", *index, "--out", str(out)]


def corpus_build(out: Path, made: Path) -> list[str]:
    """Read a folder of pages about made-up people."""
    return ["corpus", "build", str(made / "pages"), "--out", str(out / "corpus.jsonl")]


COMMANDS: dict[str, Words] = {
    "fit": fit,
    "sft": sft,
    "collect": collect,
    "index build": index_build,
    "index add": index_add,
    "evaluate": evaluate,
    "questions make": questions_make,
    "corpus build": corpus_build,
}
"""By name, what gives each command's words for a folder; a new one is added here."""


def prepare(made: Path) -> None:
    """Write what the commands read."""
    made.mkdir(parents=True, exist_ok=True)
    (made / "corpus.jsonl").unlink(missing_ok=True)
    write_config(made, "GRPO")
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(2000)]
    for file, count in (("corpus.jsonl", 8000), ("more.jsonl", 1000)):
        if file == "more.jsonl":  # new passages stand behind those of the index
            shutil.copyfile(made / "corpus.jsonl", made / file)
        with (made / file).open("a", encoding="utf-8") as lines:
            for number in range(count):
                text = " ".join(rng.choices(names, k=30))
                row = {"id": f"{file[0]}{number}", "contents": f"{rng.choice(names)}\n{text}"}
                lines.write(json.dumps(row) + "\n")
    write_pages(made)


def write_pages(made: Path) -> None:
    """Write a page for each of 600 made-up people, and an index of them."""
    said: dict[str, list[str]] = {}
    for (relation, person), other in sorted(SyntheticWorld().facts.items()):
        said.setdefault(person, []).append(f"The {relation} of {person} is {other}.")
    (made / "pages").mkdir(exist_ok=True)
    rows = []
    for person, facts in said.items():
        (made / "pages" / f"{person}.md").write_text(f"# {person}\n\n" + "\n\n".join(facts) + "\n")
        rows.append({"id": person, "contents": f"{person}\n{' '.join(facts)}"})
    corpus = made / "people.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(made / "people", ignore_errors=True)
    words = ["index", "build", "--kind", "bm25", "--corpus", str(corpus)]
    if wait(start([*words, "--out", str(made / "people")], made / "people.log")) != 0:
        raise RuntimeError(f"the pages cannot be indexed; see {made / 'people.log'}")


def prepare_from(run: Path, made: Path) -> None:
    """Write what is made of the finished fit: demonstrations, and the configs of two commands."""
    model = run / "warmstart"
    questions = {"world": {"num_questions": 40, "num_people": 60}}
    written = {
        "models": {"tiny": {"model": str(model)}},
        "datasets": {"world": questions},
        "methods": {
            "ReSearch": {"class_path": "ReSearch", "init_args": {"max_response_tokens": 64}},
            "NaiveRAG": {
                "class_path": "NaiveRAG",
                "init_args": {"max_tokens": 16, "prompt": "{question} {passages} <answer>"},
            },
        },
        "batch_size": 8,
    }
    (made / "evaluate.yaml").write_text(json.dumps(written), encoding="utf-8")
    trainer = {"callbacks": [{"class_path": "RunCheckpoint"}], "max_steps": 12}
    trainer |= {"val_check_interval": 2, "deterministic": True}  # type: ignore[dict-item]
    policy = {"policy": {"model": str(model)}, "env": {"index": str(run / "world" / "index")}}
    data = {"world": None, "train": None, "val": str(made / "demonstrations" / "rollouts.jsonl")}
    sft_config = {"trainer": trainer, "model": policy, "data": {**data, "batch_size": 4}}
    (made / "sft.yaml").write_text(json.dumps(sft_config), encoding="utf-8")
    words = ["collect", "--config", str(run / "config.yaml"), "--from", "policy"]
    words += ["--limit", "40", "--min_reward", "0"]
    if (
        wait(start([*words, "--out", str(made / "demonstrations")], made / "demonstrations.log"))
        != 0
    ):
        raise RuntimeError(f"demonstrations cannot be made; see {made / 'demonstrations.log'}")


def left_in(name: str, out: Path) -> dict[str, str]:
    """Return a digest of each file that a command left, without times; hidden leftovers too."""
    if name == "fit":
        return outcome(out)
    found = {}
    for path in sorted(out.rglob("*")) + sorted(out.parent.glob(f".{out.name}.*")):
        name_in = str(path.relative_to(out.parent)).removeprefix(out.name)
        timed = name_in == "/index.html" or path.name == "costs.json"  # seconds and bytes
        if path.is_file() and not timed and path.name != ".lock" and "tfevents" not in path.name:
            found[name_in] = _digest_of(path, str(out))
    return found


def _digest_of(path: Path, place: str) -> str:
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)
        held = {key: state[key] for key in ("state_dict", "optimizer_states", "global_step")}
        content = repr(sorted(held["state_dict"].items())).encode() + str(held).encode()
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                {k: v for k, v in row.items() if "time" not in k}
                for row in csv.DictReader(file)
                if "seconds" not in row.values()
            ]
        content = json.dumps(rows).encode()
    elif path.suffix in (".json", ".jsonl", ".yaml", ".md", ".html"):
        text = _TIMES.sub("", path.read_text(encoding="utf-8")).replace(place, "OUT")
        lines = [line for line in text.splitlines() if "seconds" not in line]
        if path.suffix == ".md":  # the last column of a card's rows is seconds
            lines = [re.sub(r"Made \S+ \S+ UTC", "", line) for line in lines]
            lines = [re.sub(r"\| [\d.]+ \[[^\]]*\] \|$", "", line) for line in lines]
        lines = sorted(lines) if path.suffix == ".jsonl" else lines
        content = "\n".join(lines).encode()
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def kill_once(name: str, made: Path, out: Path, whole: dict[str, str], args: Any) -> Kill | None:
    """Kill a command once and let it go on; None where it had ended before."""
    rng, seconds = args
    shutil.rmtree(out, ignore_errors=True)
    log = out.with_name(f"{out.name}.log")
    words = COMMANDS[name](out, made)
    after = rng.random() * seconds
    child, begun = start(words, log), time.monotonic()
    while time.monotonic() - begun < after:
        if os.waitpid(child, os.WNOHANG)[0]:
            return None
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    wait(child)
    files = [p for p in (out, *out.parent.glob(f".{out.name}*")) if p.exists()]
    left = ", ".join(p.name.replace(out.name, "OUT") for p in files) or "nothing"
    said = log.stat().st_size
    status, went_on = wait(start(words, log)), "the same command"
    if status != 0:
        text = log.read_bytes()[said:].decode("utf-8", "replace")
        way = next((way for way in _WAYS if way in text), None)
        if way is not None:
            went_on = f"with {way}, as it said"
            status = wait(start([*words, way], log))
    if status != 0:
        differs = [f"it failed with status {status}: see {log}"]
    else:
        mine = left_in(name, out)
        differs = sorted(k for k in whole.keys() | mine.keys() if whole.get(k) != mine.get(k))
    if not differs:
        shutil.rmtree(out)
    return Kill(name, round(after, 2), round(seconds, 2), left, went_on, differs)


def table(kills: list[Kill]) -> str:
    """Return a line for each command: kills, how it went on, what differed."""
    lines = ["| command | kills | seconds alone | goes on by | differs |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(kill.command for kill in kills):
        mine = [kill for kill in kills if kill.command == name]
        ways = ", ".join(sorted({kill.went_on for kill in mine}))
        wrong = sorted({what for kill in mine for what in kill.differs})
        lines.append(
            f"| {name} | {len(mine)} | {mine[0].of_s:.1f} | {ways} "
            f"| {'; '.join(wrong) or 'nothing'} |"
        )
    bad = sum(bool(kill.differs) for kill in kills)
    return "\n".join([*lines, f"| all | {len(kills)} | | | {bad} of {len(kills)} differ |"])


def is_there(name: str) -> bool:
    """Whether this version has the command."""
    from research_rl.envs.retrieval import cli as index_cli
    from research_rl.trainers.cli.dispatch import COMMANDS as KNOWN

    first, _, second = name.partition(" ")
    return first in KNOWN and (first != "index" or second in index_cli._COMMANDS)


def main() -> None:
    """Run and kill every command, write kills.json and print the table."""
    parser = argparse.ArgumentParser(description="kill commands and give them again")
    parser.add_argument("--out", type=Path, required=True, help="a folder for what they write")
    parser.add_argument("--kills", type=int, default=30, help="of all commands together")
    parser.add_argument("--seed", type=int, default=0, help="decides every moment")
    parser.add_argument("--only", nargs="+", choices=tuple(COMMANDS), help="these alone")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    from research_rl.envs.retrieval import cli as index_cli  # noqa: F401
    from research_rl.trainers.cli import fit as trainer_cli  # noqa: F401
    from research_rl.trainers.demonstrations import sft as sft_cli  # noqa: F401
    from research_rl.trainers.evaluate import command as evaluate_cli  # noqa: F401

    torch.set_num_threads(1)
    prepare(out)
    names = [name for name in COMMANDS if is_there(name)]
    for name in sorted(set(COMMANDS) - set(names)):
        print(f"this version has no command {name}", flush=True)
    wanted = [name for name in names if name in (options.only or names)]
    kills: list[Kill] = []
    rng = random.Random(options.seed)
    each = -(-options.kills // len(wanted))
    for name in names:
        if name not in wanted and name != "fit":
            continue
        alone = out / name
        begun = time.monotonic()
        if wait(start(COMMANDS[name](alone, out), out / f"{name}.log")) != 0:
            sys.exit(f"{name} failed alone; see {out / f'{name}.log'}")
        seconds = time.monotonic() - begun
        if name == "fit":
            prepare_from(alone, out)
        if name not in wanted:
            continue
        whole, done, tries = left_in(name, alone), 0, 0
        while done < each and tries < 3 * each:
            tries += 1
            folder = out / f"trial {name} {done}"
            kill = kill_once(name, out, folder, whole, (rng, seconds))
            if kill is not None:
                kills.append(kill)
                done += 1
                print(json.dumps(asdict(kill)), flush=True)
    report = [asdict(kill) for kill in kills]
    (out / "kills.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"\nseed {options.seed}\n\n{table(kills)}")
    sys.exit(int(any(kill.differs for kill in kills)))


if __name__ == "__main__":
    main()

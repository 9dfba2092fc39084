"""A whole training step against TRL's GRPOTrainer: rollouts, reference, loss, gradient, optimizer.

Both sides do the same work at the same token counts (benchmarks/steps.py says how each is set up),
each in a process of its own, one step here and one step there in turn. Seconds are CPU seconds of
the process, medians over the steps behind the first; memory is the growth of the resident size at
its peak beyond that before the first step. The status is 1 where a bar is missed.

    pip install -e '.[bench]'
    python benchmarks/vs_trl.py [--cases NUMBER ...] [--repeats 2] [--json FILE]
    python benchmarks/vs_trl.py --model FOLDER [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from planned import make_policy
from tokenizers import AddedToken
from tqdm import tqdm

from research_rl.agents import LMPolicy, PolicyConfig

SIDES = ("trl", "ours")
STAGES = ("rollout", "reference", "forward", "backward")
MOST_MEMORY = 0.6


@dataclass(frozen=True)
class Case:
    """One comparison, and how many times as fast as TRL each part has to be.

    Args:
        size: of the random model and of the work.
        dtype: float32, bfloat16, or pure for TRL with bfloat16 weights.
        shape: of the rollouts.
        bars: by part.
        model: folder of a real model in place of the random one; the work stays that of ``size``.
    """

    size: str
    dtype: str
    shape: str
    bars: dict[str, float] = field(default_factory=dict)
    model: str | None = None

    @property
    def name(self) -> str:
        """As it is shown."""
        weights = {"bfloat16": "bf16", "float32": "fp32", "pure": "bf16, TRL's weights too"}
        return f"{Path(self.model or self.size).name} {weights[self.dtype]} {self.shape}"


CASES = (
    Case("tiny", "float32", "uniform", {"rollout": 2.0, "learner": 2.0, "step": 2.0}),
    Case("tiny", "bfloat16", "uniform", {"rollout": 3.5, "learner": 3.0, "step": 3.2}),
    Case("tiny", "bfloat16", "ragged", {"rollout": 2.8, "learner": 3.8, "step": 3.4}),
    Case("m100", "bfloat16", "uniform", {"rollout": 2.2, "learner": 1.0, "step": 1.5}),
    Case("tiny", "pure", "uniform"),
    Case("tiny", "pure", "ragged"),
)


class Side:
    """A process that takes steps when it is told to.

    Args:
        name: for messages.
        command: a program with its arguments, see steps.Gate.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answer()

    def step(self, last: bool) -> dict[str, Any]:
        """Take a step and return what it cost."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        found = self._answer()
        if last:
            self._process.communicate()
        else:
            self._answer()
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise SystemExit(f"{self._name} failed:\n{self._errors.read()[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


def compare(case: Case, repeats: int) -> dict[str, Any]:
    """Run a case; the medians of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(case.size) if case.model is None else real_policy(case.model)
        policy.model.save_pretrained(folder)
        policy.tokenizer.pad_token = policy.tokenizer.eos_token  # TRL asks for one
        policy.tokenizer.save_pretrained(folder)
        del policy
        program = str(Path(__file__).with_name("steps.py"))
        options = [folder, case.size, case.dtype, case.shape, str(repeats + 1)]
        sides = {name: Side(name, [program, name, *options]) for name in SIDES}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
        for number in tqdm(range(repeats + 1), desc=case.name):
            for name, side in sides.items():
                found[name].append(side.step(number == repeats))
    return {name: _median(steps) for name, steps in found.items()}


def real_policy(folder: str) -> LMPolicy:
    """A real model in float32, with a token more: the plan ends a turn by one."""
    policy = LMPolicy.from_config(PolicyConfig(folder, dtype="float32"))
    policy.tokenizer.add_tokens([AddedToken("</search>", special=False)])
    if len(policy.tokenizer) > policy.model.get_input_embeddings().num_embeddings:
        policy.model.resize_token_embeddings(len(policy.tokenizer))
    return policy


def _median(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the steps behind the first, which allocates, if there are any."""
    counted = steps[1:] or steps
    row = {s: statistics.median(step["stages"].get(s, 0.0) for step in counted) for s in STAGES}
    row["step"] = statistics.median(step["step"] for step in counted)
    row["learner"] = statistics.median(
        sum(step["stages"].get(s, 0.0) for s in STAGES[1:]) for step in counted
    )
    row["mb"] = max(step["mb"] for step in steps)
    return row | {name: steps[-1][name] for name in ("sampled", "prefilled")} | {"all": steps}


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times as fast ours is in each part; of memory and prefilled tokens, our share."""
    trl, ours = row["trl"], row["ours"]
    found = {part: trl[part] / ours[part] for part in (*STAGES, "learner", "step")}
    return found | {name: ours[name] / trl[name] for name in ("mb", "prefilled")}


def missed(case: Case, row: dict[str, Any]) -> list[str]:
    """A line for each bar that was not reached."""
    found = ratios(row)
    lines = [
        f"{case.name}: {part} must be {bar}x as fast as TRL's, is {found[part]:.2f}x"
        for part, bar in case.bars.items()
        if found[part] < bar
    ]
    if found["mb"] > MOST_MEMORY:
        share = f"{found['mb']:.2f}x"
        lines.append(f"{case.name}: memory must grow {MOST_MEMORY}x TRL's at most, grows {share}")
    if row["trl"]["sampled"] != row["ours"]["sampled"]:
        lines.append(f"{case.name}: both must sample the same number of tokens")
    return lines


def table(report: list[dict[str, Any]]) -> str:
    """Markdown: seconds of both sides and the ratios."""
    lines = [
        "| case | | step | rollout | reference | forward | backward | ref + fwd + bwd "
        "| prefilled | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in report:
        for name, side in (("TRL", entry["trl"]), ("ours", entry["ours"])):
            parts = " | ".join(f"{side[p]:.2f}" for p in ("step", *STAGES, "learner"))
            shown = entry["case"] if name == "TRL" else ""
            lines.append(f"| {shown} | {name} | {parts} | {side['prefilled']} | {side['mb']:.0f} |")
        found = ratios(entry)
        parts = " | ".join(f"**{found[p]:.2f}x**" for p in ("step", *STAGES, "learner"))
        lines.append(f"| | ratio | {parts} | {found['prefilled']:.2f} | {found['mb']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print the table and the bars that were missed."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        epilog="cases: " + "; ".join(f"{i} {case.name}" for i, case in enumerate(CASES)),
    )
    numbers = range(len(CASES))
    parser.add_argument("--cases", nargs="*", type=int, choices=numbers, default=list(numbers))
    parser.add_argument(
        "--repeats", type=int, default=2, help="steps behind the first; 0: it counts"
    )
    parser.add_argument("--model", help="folder of a real model: this one case, of m100's work")
    kinds = ("float32", "bfloat16", "pure")
    parser.add_argument("--dtype", choices=kinds, default="float32", help="of --model's case")
    parser.add_argument("--json", help="write the figures here as well")
    args = parser.parse_args()
    cases = [CASES[number] for number in args.cases]
    if args.model:
        cases = [Case("m100", args.dtype, "uniform", model=args.model)]
    report: list[dict[str, Any]] = []
    lacking: list[str] = []
    for case in cases:
        row = compare(case, args.repeats)
        report.append({"case": case.name, **row})
        lacking += missed(case, row)
        print(table(report[-1:]), flush=True)
        if args.json:
            machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
            whole = {"machine": machine, "cases": report, "missed": lacking}
            Path(args.json).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    print(f"\n{table(report)}\n")
    print("\n".join(lacking) or "every bar was reached")
    raise SystemExit(1 if lacking else 0)


if __name__ == "__main__":
    main()

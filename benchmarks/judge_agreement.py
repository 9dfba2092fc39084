"""How far EM, F1 and cover-EM agree with a language model's verdicts on recorded predictions.

Reads ``judge_cases.jsonl``: one {"question", "golds", "prediction", "gpt4o_verdict", "dataset"} a
line. With ``--url`` and ``--model`` a judge of your own is asked the same cases and compared too.

    python benchmarks/judge_agreement.py --data FOLDER
    python benchmarks/judge_agreement.py --data FOLDER --url http://localhost:8000 --model NAME
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research_rl.agents.methods.openai_generator import OpenAIGenerator
from research_rl.trainers.evaluate.judges.cache import JudgeCache
from research_rl.trainers.evaluate.judges.judge import Judge, JudgeCase, judge_score
from research_rl.trainers.evaluate.judges.rows import chat_of
from research_rl.trainers.evaluate.measures.agreement import Agreement, Verdicts, agreement_of
from research_rl.trainers.evaluate.measures.answers import answer_scores
from research_rl.trainers.evaluate.measures.statistics import bootstrap_interval

RECORDED = "GPT-4o"


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the recorded cases."""
    lines = (folder / "judge_cases.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def stand_ins(rows: Sequence[Mapping[str, Any]]) -> dict[str, Verdicts]:
    """Return what each metric would say in the judge's place."""
    scores = [answer_scores(row["prediction"], row["golds"]) for row in rows]
    return {
        "EM": [score["em"] == 1.0 for score in scores],
        "F1 >= 0.5": [score["f1"] >= 0.5 for score in scores],
        "F1 >= 0.3": [score["f1"] >= 0.3 for score in scores],
        "cover-EM": [score["cover_em"] == 1.0 for score in scores],
        "cover-EM or F1 >= 0.5": [s["cover_em"] == 1.0 or s["f1"] >= 0.5 for s in scores],
    }


def tell(name: str, verdicts: Verdicts, truth: Verdicts) -> None:
    """Print one line of the table: agreement with its interval, kappa, and who is stricter."""
    found: Agreement = agreement_of({name: verdicts, RECORDED: truth})
    pairs = [(v, t) for v, t in zip(verdicts, truth, strict=True) if v is not None]
    same = bootstrap_interval(float(v == t) for v, t in pairs)
    stricter = sum(bool(t) and not v for v, t in pairs)
    looser = sum(bool(v) and not t for v, t in pairs)
    if found.percent is None or same.low is None or same.high is None:
        print(f"| {name} | - | - | - | - | 0 |")
        return
    kappa = "-" if found.kappa is None else f"{found.kappa:.3f}"
    print(
        f"| {name} | {found.percent:.1f} ({100 * same.low:.1f} to {100 * same.high:.1f}) | {kappa} "
        f"| {stricter} | {looser} | {found.n} |"
    )


def table(rows: Sequence[Mapping[str, Any]], judges: Mapping[str, Verdicts]) -> None:
    """Print how each judge agrees with the recorded verdicts."""
    truth = [row["gpt4o_verdict"] for row in rows]
    print(f"| judge | agrees with {RECORDED}, % | kappa | wrong, {RECORDED}: right | ", end="")
    print(f"right, {RECORDED}: wrong | n |\n|---|---|---|---|---|---|")
    for name, verdicts in judges.items():
        tell(name, verdicts, truth)


def main() -> None:
    """Print a table over all cases and the best stand-in for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of judge_cases.jsonl")
    parser.add_argument("--url", help="base url of an OpenAI-compatible server that judges too")
    parser.add_argument("--model", help="the judge's name there")
    parser.add_argument("--cache", type=Path, default=Path("judge_agreement.jsonl"))
    args = parser.parse_args()
    if (args.url is None) != (args.model is None):
        parser.error("--url and --model must be given together")
    rows = read(args.data)
    judges = stand_ins(rows)
    if args.model is not None:
        cases = [JudgeCase(r["question"], tuple(r["golds"]), r["prediction"]) for r in rows]
        chat = chat_of(OpenAIGenerator(args.url, args.model))
        judge = Judge(args.model, chat, JudgeCache(args.cache))
        verdicts = judge.judge(cases, progress=True)
        judges[args.model] = [verdict.correct for verdict in verdicts]
        score = judge_score(verdicts)
        print(f"{args.model}: {score.n} verdicts, {score.failures} failures\n")
    table(rows, judges)
    for dataset in sorted({row["dataset"] for row in rows}):
        places = [place for place, row in enumerate(rows) if row["dataset"] == dataset]
        print(f"\n{dataset}\n")
        part = {name: [verdicts[i] for i in places] for name, verdicts in judges.items()}
        table([rows[i] for i in places], part)


if __name__ == "__main__":
    main()

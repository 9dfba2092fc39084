"""The audit of four data sets over their own paragraphs: what a policy can find at all.

Each set is indexed by BM25 and audited as `research data audit` does it. Where a file has training
questions and others, the others are audited a second time against the training ones, for overlap.

    python benchmarks/audit.py --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index
from research_rl.trainers.audit.command import main as research_data

SETS = ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
ROWS = {
    "questions": "questions",
    "ceiling": "**ceiling of exact match, %**",
    "answer_in_corpus": "answers in the corpus, without yes and no, %",
    "gold_in_corpus": "gold passages in the corpus, %",
    "gold_by_question": "gold passages in the first 5 for the question, %",
    "all_gold_by_question": "all of a question's, %",
    "answer_by_question": "an answer in the first 5, %",
    "gold_by_oracle": "gold passages, two rounds with an oracle, %",
    "all_gold_by_oracle": "all of a question's, %",
    "answer_by_oracle": "an answer, %",
    "answer_in_question": "answer in the question, %",
    "copies": "asked twice",
}


def audit(questions: str, index: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run the command and return what it wrote."""
    with redirect_stdout(StringIO()):
        where = ["--questions", questions, "--index", str(index), "--out", str(out)]
        research_data(["audit", *where, *more])
    found: dict[str, Any] = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    return found


def overlap(file: Path, index: Path, out: Path) -> str:
    """Return how many of the other questions repeat a training question."""
    if {q.metadata.get("split") for q in read_questions(file)} != {"train", "dev"}:
        return "–"
    found = audit(f"{file}#dev", index, out, "--train", f"{file}#train")["numbers"]
    train = found["train"]
    counts = (train["same"], train["near"], train["near_with_its_answer"])
    return f"{' / '.join(map(str, counts))} of {found['questions']}"


def cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of FlashRAG files")
    args = parser.parse_args()
    sets = [name for name in SETS if (args.data / f"{name}_questions.jsonl").is_file()]
    if not sets:
        sys.stdout.write(f"skipped: no hotpotqa_questions.jsonl in {args.data}; pass --data\n")
        return
    numbers: list[dict[str, Any]] = []
    overlaps: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for name in sets:
            file, out = args.data / f"{name}_questions.jsonl", Path(work) / f"{name}.audit"
            corpus = args.data / f"{name}_corpus.jsonl"
            index = build_index(corpus, Path(work) / name, kind="bm25")
            found = audit(str(file), index, out)
            numbers.append(
                found["numbers"] | {f"bucket {k}": v for k, v in found["buckets"].items()}
            )
            overlaps.append(overlap(file, index, out))
    print(table(sets, numbers, overlaps))


def table(sets: Sequence[str], numbers: Sequence[dict[str, Any]], overlaps: Sequence[str]) -> str:
    """Return the figures as a Markdown table, a data set a column."""
    lines = [["", *sets], ["---"] * (len(sets) + 1)]
    lines += [[text, *(cell(key, one[key]) for one in numbers)] for key, text in ROWS.items()]
    lines.append(["dev questions that repeat a training one: same / near / near with its answer"])
    lines[-1] += overlaps
    for key in (key for key in numbers[0] if key.startswith("bucket ")):
        lines.append([key, *(str(one[key]) for one in numbers)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()

"""What an index of real Wikipedia paragraphs finds: recall, build time, size and latency.

The questions of HotpotQA, 2WikiMultihopQA, MuSiQue and Bamboogle are asked as they stand, one
query each. "recall" is the share of a question's supporting paragraphs among the first k, "answer"
whether a gold answer stands in one of them (normalised as for exact match). "merged" is one index
of all paragraphs.

    python benchmarks/retrieval_recall.py --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index, load_retriever
from research_rl.envs.rewards import normalize_answer
from research_rl.envs.types import Passage, Question, Retriever

SETS = ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle")


@dataclass
class Row:
    """One line of the table; recall and answer in percent, None where nothing is marked."""

    name: str
    passages: int
    questions: int
    recall: float | None
    answer: float
    build_s: float
    megabytes: float
    ms_single: float
    ms_batch: float


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_merged(data: Path, names: Sequence[str], path: Path) -> dict[tuple[str, str], str]:
    """Write one corpus without duplicates; return (set, its id) -> id there."""
    ids: dict[str, str] = {}
    merged: dict[tuple[str, str], str] = {}
    with path.open("w", encoding="utf-8") as file:
        for name in names:
            for row in lines(data / f"{name}_corpus.jsonl"):
                contents = row["contents"]
                if contents not in ids:
                    ids[contents] = f"{name}/{row['id']}"
                    file.write(json.dumps({"id": ids[contents], "contents": contents}) + "\n")
                merged[name, str(row["id"])] = ids[contents]
    return merged


def latency(retriever: Retriever, queries: Sequence[str], k: int) -> tuple[float, float]:
    """Return the median ms of a search alone, and ms a query in batches of 64."""
    single = []
    for query in queries[:100]:
        start = time.perf_counter()
        retriever.search([query], k)
        single.append(time.perf_counter() - start)
    batched = []
    for first in range(0, min(len(queries), 640), 64):
        batch = queries[first : first + 64]
        start = time.perf_counter()
        retriever.search(batch, k)
        batched.append((time.perf_counter() - start) / len(batch))
    return 1e3 * statistics.median(single), 1e3 * statistics.median(batched)


def has_answer(question: Question, passages: Sequence[Passage]) -> bool:
    """Return whether a gold answer occurs in a passage as whole words."""
    text = " ".join(f" {normalize_answer(p.contents)} " for p in passages)
    golds = (normalize_answer(answer) for answer in question.answers)
    return any(gold and f" {gold} " in text for gold in golds)


def measure(
    name: str, names: Sequence[str], data: Path, encoder: str, k: int, **options: Any
) -> Row:
    """Build one index, ask it every question of the sets and return what was found."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, index = Path(folder) / "corpus.jsonl", Path(folder) / "index"
        ids = write_merged(data, names, corpus)
        start = time.perf_counter()
        build_index(corpus, index, encoder=encoder, **options)
        build_s = time.perf_counter() - start
        retriever = load_retriever(index)
        asked = [(n, q) for n in names for q in read_questions(data / f"{n}_questions.jsonl")]
        found = retriever.search([q.text for _, q in asked], k)
        recalls, answers = [], []
        for (set_name, question), passages in zip(asked, found, strict=True):
            gold = {ids[set_name, str(i)] for i in question.metadata.get("gold_ids", ())}
            if gold:
                recalls.append(len(gold & {p.id for p in passages}) / len(gold))
            answers.append(has_answer(question, passages))
        alone, together = latency(retriever, [q.text for _, q in asked], k)
        return Row(
            name,
            len(set(ids.values())),
            len(asked),
            round(100 * statistics.mean(recalls), 1) if recalls else None,
            round(100 * statistics.mean(answers), 1),
            round(build_s, 1),
            round(sum(f.stat().st_size for f in index.iterdir()) / 1e6, 1),
            round(alone, 2),
            round(together, 2),
        )


def table(rows: Sequence[Row], k: int) -> str:
    """Return the rows as a Markdown table."""
    head = (
        f"| corpus | passages | questions | recall@{k} % | answer in top {k} % | build s | MB | "
        "ms, alone | ms, in 64 |"
    )
    out = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = ["" if value is None else str(value) for value in asdict(row).values()]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of FlashRAG files")
    parser.add_argument("--encoder", default="bm25-sketch", help="or a Hugging Face name or path")
    parser.add_argument("--dim", type=int, help="length of the sketch")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    if not (args.data / "hotpotqa_corpus.jsonl").is_file():
        sys.stdout.write(f"skipped: no hotpotqa_corpus.jsonl in {args.data}; pass --data FOLDER\n")
        return
    options = {"dim": args.dim} if args.dim else {}
    tasks: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in SETS]
    tasks += [("merged, without bamboogle", SETS[:3]), ("merged", SETS)]
    rows = [measure(n, s, args.data, args.encoder, args.top_k, **options) for n, s in tasks]
    print(table(rows, args.top_k))
    if args.json:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

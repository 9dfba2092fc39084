"""What retrieval finds in real Wikipedia paragraphs: recall, build time, size and latency.

The questions of HotpotQA, 2WikiMultihopQA and MuSiQue are asked as they stand, one query each, of
one index of all their paragraphs. "recall" is the share of a question's supporting paragraphs among
the first k, "answer" whether a gold answer stands in one of them (normalised as for exact match).
BM25, the offline encoder, a sentence encoder if one is named, their fusion, and every way to keep
the vectors. An encoder encodes once; its types are made from the same vectors.

    python benchmarks/retrieval_recall.py --data FOLDER --encoder MODEL
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research_rl.envs.questions.read import read_questions
from research_rl.envs.retrieval import (
    HybridRetriever,
    Storage,
    build_index,
    load_retriever,
    merge_shards,
)
from research_rl.envs.retrieval.vectors.faiss_types import TYPES
from research_rl.envs.rewards.answers import normalize_answer
from research_rl.envs.types import Passage, Question, Retriever

SETS = ("hotpotqa", "2wikimultihopqa", "musique")
BARS = {"bm25": 67.0, "bm25-sketch flat": 65.0, "bm25 + sentence encoder": 69.0}


@dataclass
class Row:
    """One line of the table; recalls and answer in percent, of each set and of all."""

    name: str
    hotpotqa: float
    wiki2: float
    musique: float
    recall: float
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


@dataclass
class Asked:
    """The questions, and where their supporting paragraphs are in the merged corpus."""

    questions: list[tuple[str, Question]]
    ids: dict[tuple[str, str], str]
    k: int

    def row(self, name: str, retriever: Retriever, build_s: float, size: int) -> Row:
        """Ask every question and return what was found."""
        texts = [question.text for _, question in self.questions]
        found = retriever.search(texts, self.k)
        recalls: dict[str, list[float]] = {name: [] for name in SETS}
        answers = []
        for (set_name, question), passages in zip(self.questions, found, strict=True):
            answers.append(has_answer(question, passages))
            gold = {self.ids[set_name, str(i)] for i in question.metadata.get("gold_ids", ())}
            if gold:
                recalls[set_name].append(len(gold & {p.id for p in passages}) / len(gold))
        everything = [value for values in recalls.values() for value in values]
        alone, together = latency(retriever, texts, self.k)
        return Row(
            name,
            *(round(100 * statistics.mean(recalls[one]), 1) for one in SETS),
            round(100 * statistics.mean(everything), 1),
            round(100 * statistics.mean(answers), 1),
            round(build_s, 1),
            round(size / 1e6, 1),
            round(alone, 2),
            round(together, 2),
        )


class Bench:
    """Builds in a folder; shards that are there already are used again."""

    def __init__(self, work: Path, data: Path, k: int) -> None:
        self.work, self.corpus = work, work / "merged.jsonl"
        ids = write_merged(data, SETS, work / "fresh.jsonl")
        if not self.corpus.is_file():  # shards belong to a corpus of a certain age
            (work / "fresh.jsonl").rename(self.corpus)
        asked = [(n, q) for n in SETS for q in read_questions(data / f"{n}_questions.jsonl")]
        self.asked = Asked(asked, ids, k)

    def bm25(self) -> tuple[Row, Retriever]:
        """Measure BM25."""
        start = time.perf_counter()
        folder = build_index(self.corpus, self.work / "bm25", kind="bm25", overwrite=True)
        seconds = time.perf_counter() - start
        retriever = load_retriever(folder, cache_size=0)
        return self.asked.row("bm25", retriever, seconds, size_of(folder)), retriever

    def types(self, label: str, encoder: str, **options: Any) -> Iterator[tuple[Row, Retriever]]:
        """Measure every type with the vectors of one encoder, flat first."""
        shard, clock = self.work / f"{label}.shard", self.work / f"{label}.seconds"
        if not (shard / "shard.json").is_file():
            start = time.perf_counter()
            build_index(self.corpus, shard, encoder=encoder, shard="0/1", **options)
            clock.write_text(str(time.perf_counter() - start))
        encoding = float(clock.read_text())
        for name in TYPES:
            start = time.perf_counter()
            out = self.work / f"{label}.{name}"
            folder = merge_shards([shard], out, storage=Storage(index_type=name), overwrite=True)
            seconds = encoding + time.perf_counter() - start
            retriever = load_retriever(folder, cache_size=0)
            row = self.asked.row(f"{label} {name}", retriever, seconds, size_of(folder))
            yield row, retriever


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def table(rows: Sequence[Row], k: int) -> str:
    """Return the rows as a Markdown table."""
    head = (
        f"| retriever | HotpotQA | 2Wiki | MuSiQue | recall@{k} % | answer in top {k} % | build s "
        "| MB | ms, alone | ms, in 64 |"
    )
    out = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    out += ["| " + " | ".join(map(str, asdict(row).values())) + " |" for row in rows]
    return "\n".join(out)


def measure(args: argparse.Namespace, work: Path) -> list[Row]:
    """Measure all ways, printing each as it is done."""
    bench = Bench(work, args.data, args.top_k)
    rows: list[Row] = []

    def done(row: Row) -> None:
        rows.append(row)
        sys.stderr.write(f"{row.name}: recall {row.recall}\n")

    row, bm25 = bench.bm25()
    done(row)
    for row, _ in bench.types("bm25-sketch", "bm25-sketch"):
        done(row)
    if not args.encoder:
        return rows
    dense: Retriever | None = None
    for row, retriever in bench.types("sentence", args.encoder, dtype=args.dtype):
        dense = dense or retriever
        done(row)
    if dense is not None:
        both = HybridRetriever([bm25, dense], cache_size=0)
        built = [row for row in rows if row.name in ("bm25", "sentence flat")]
        seconds, size = (sum(r.build_s for r in built), sum(r.megabytes for r in built))
        done(bench.asked.row("bm25 + sentence encoder", both, seconds, int(1e6 * size)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of FlashRAG files")
    parser.add_argument("--encoder", help="a sentence encoder too: Hugging Face name or path")
    parser.add_argument("--dtype", default="float32", help="of its weights")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder to keep vectors in, and to go on from")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    if not (args.data / "hotpotqa_corpus.jsonl").is_file():
        sys.stdout.write(f"skipped: no hotpotqa_corpus.jsonl in {args.data}; pass --data FOLDER\n")
        return
    with ExitStack() as stack:
        folder = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(args, folder)
    print(table(rows, args.top_k))
    if args.json:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")
    missed = [r.name for r in rows if r.recall < BARS.get(r.name, 0.0) and args.top_k == 5]
    if missed:
        raise SystemExit(f"below the bar: {', '.join(missed)}")


if __name__ == "__main__":
    main()

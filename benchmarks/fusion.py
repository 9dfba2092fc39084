"""A hybrid search beside its members: what it finds more, and what it costs.

The questions of HotpotQA, 2WikiMultihopQA and MuSiQue are asked of all their paragraphs; vectors of
a sentence encoder, words by BM25, and both fused. Weights are chosen by every second question and
measured on the others. "s" is the CPU time of all questions without encoding them; that of the
hybrid is also told against its members together, who are asked for as many passages as it asks of
them.

    python benchmarks/fusion.py --data FOLDER --encoder MODEL
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from retrieval_recall import SETS, write_merged

from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import Encoder, HybridRetriever, build_index, load_retriever
from research_rl.envs.retrieval.encoders import SKETCH, Vectors
from research_rl.envs.retrieval.search import BM25Retriever, DenseRetriever, tune_weights
from research_rl.envs.types import Retriever

DEPTH, K = 100, 5
MOST = 1.2
"""Time of a hybrid search, in that of its members together."""


class Remembered:
    """An encoder that encodes each query once, so that times are those of searching alone."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._kept = encoder, dict[str, Vectors]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return what the encoder gave for these texts."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._kept]:
            self._kept |= dict(zip(new, self._encoder.encode_queries(new), strict=True))
        return np.stack([self._kept[text] for text in texts])


def seconds(retriever: Retriever, queries: Sequence[str], k: int, rounds: int) -> float:
    """Return the median CPU time to ask all queries, in batches of 64."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for first in range(0, len(queries), 64):
            retriever.search(queries[first : first + 64], k)
        times.append(time.process_time() - start)
    return statistics.median(times)


def made(
    work: Path, corpus: Path, encoder: str, dtype: str
) -> tuple[DenseRetriever, BM25Retriever]:
    """Build both members, or open those of an earlier run."""
    if not (work / "dense" / "manifest.json").is_file():
        options = {} if encoder == SKETCH else {"dtype": dtype}
        build_index(corpus, work / "dense", encoder=encoder, **options)
    if not (work / "bm25" / "manifest.json").is_file():
        build_index(corpus, work / "bm25", kind="bm25")
    dense = load_retriever(work / "dense", cache_size=0)
    lexical = load_retriever(work / "bm25", cache_size=0)
    assert isinstance(dense, DenseRetriever)
    assert isinstance(lexical, BM25Retriever)
    dense.encoder = Remembered(dense.encoder)  # type: ignore[assignment]
    return dense, lexical


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of FlashRAG files")
    parser.add_argument("--encoder", help="a sentence encoder: Hugging Face name or path")
    parser.add_argument("--dtype", default="float32", help="of its weights")
    parser.add_argument("--small", action="store_true", help="the small files, 540 questions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder to keep the indexes in")
    args = parser.parse_args()
    if not (args.data / "hotpotqa_corpus.jsonl").is_file() or not args.encoder:
        sys.stdout.write("skipped: needs --encoder MODEL and the files of --data FOLDER\n")
        return
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        names = [f"{name}_small" for name in SETS] if args.small else SETS
        ids = write_merged(args.data, names, work / "merged.jsonl")
        dense, lexical = made(work, work / "merged.jsonl", args.encoder, args.dtype)
        asked = [(n, q) for n in names for q in read_questions(args.data / f"{n}_questions.jsonl")]
        asked = [(n, q) for n, q in asked if q.metadata.get("gold_ids")]
        gold = [{ids[n, str(i)] for i in q.metadata["gold_ids"]} for n, q in asked]
        report(dense, lexical, [q.text for _, q in asked], gold, args.rounds)


def report(
    dense: DenseRetriever,
    lexical: BM25Retriever,
    texts: Sequence[str],
    gold: Sequence[set[str]],
    rounds: int,
) -> None:
    """Print both tables, and end with an error where the hybrid is too slow."""
    rows = {p.id: row for row, p in enumerate(dense.passages)}
    golds = [{rows[one] for one in named} for named in gold]
    ranked = list(zip(dense.places(texts, DEPTH), lexical.places(texts, DEPTH), strict=True))
    found = tune_weights(ranked, golds, K)
    both = HybridRetriever([dense, lexical], cache_size=0)
    tuned = HybridRetriever([dense, lexical], list(found.weights), cache_size=0)
    ways = {"vectors": dense, "words": lexical, "both, equal weights": both}
    ways[f"both, {found.weights[0]:g} and {found.weights[1]:g}"] = tuned
    half = slice(1, None, 2)
    recalls, lines = {}, [["", "recall@5 %, all", "recall@5 %, other half", "CPU s, all questions"]]
    for name, way in ways.items():
        hits = zip(way.search(texts, K), gold, strict=True)
        recalls[name] = np.array([len(g & {p.id for p in row}) / len(g) for row, g in hits])
        took = seconds(way, texts, K, rounds)
        shares = (recalls[name].mean(), recalls[name][half].mean())
        lines.append([name, *(f"{100 * share:.1f}" for share in shares), f"{took:.1f}"])
    print(table(lines), end="\n\n")
    best = max("vectors", "words", key=lambda name: float(recalls[name].mean()))
    ahead = recalls["both, equal weights"] - recalls[best]
    drawn = np.random.default_rng(0).integers(0, len(ahead), (10_000, len(ahead)))
    low, high = np.quantile(ahead[drawn].mean(axis=1), [0.025, 0.975])
    print(
        f"equal weights are ahead of {best} by {100 * ahead.mean():+.1f} points "
        f"(95 % {100 * low:+.1f} to {100 * high:+.1f}, n = {len(ahead)}); tuned ones, on the half "
        f"that did not choose them, by {100 * (found.recall - max(found.members)):+.1f} "
        f"({100 * found.low:+.1f} to {100 * found.high:+.1f}, n = {found.questions})"
    )
    together = sum(seconds(way, texts, DEPTH, rounds) for way in (dense, lexical))
    ratio = seconds(both, texts, K, rounds) / together
    print(f"time of the hybrid / of its members together: {ratio:.2f} (at most {MOST})")
    if ratio > MOST:
        raise SystemExit(f"too slow: {ratio:.2f}")


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines as a Markdown table."""
    drawn = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in drawn)


if __name__ == "__main__":
    main()

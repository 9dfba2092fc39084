"""``research index build | search | info``: make an index, ask it, read its passport."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from research_rl.envs.retrieval.encoders import SKETCH
from research_rl.envs.retrieval.index import build_index, load_retriever, read_manifest

_EXAMPLES = """examples:
  research index build --corpus corpus.jsonl --out index
  research index build --corpus wiki.jsonl --out wiki-e5 --encoder intfloat/e5-base-v2 --device cuda
  research index search index "Who founded Oslo?" --top-k 3
  research index info index
"""
_SKETCH_OPTIONS = ("dim", "k1", "b", "title_weight", "num_hashes")
_MODEL_OPTIONS = (
    *("query_prefix", "passage_prefix", "pooling", "normalize", "max_length"),
    *("batch_size", "dtype", "device", "revision"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand.

    Raises:
        SystemExit: code 2 with one line on stderr for whatever the user can mend.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    sys.stderr.write(f"research index: error: {line}\n")
    raise SystemExit(2)


def _build(args: argparse.Namespace) -> None:
    names = _SKETCH_OPTIONS + _MODEL_OPTIONS
    given = {name: getattr(args, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    own = _SKETCH_OPTIONS if args.encoder == SKETCH else _MODEL_OPTIONS
    if foreign := sorted(set(options) - set(own)):
        flags = ", ".join("--" + name.replace("_", "-") for name in foreign)
        _fail(f"{flags} must not be given with --encoder {args.encoder}; leave it out")
    start = time.perf_counter()
    folder = build_index(
        args.corpus,
        args.out,
        kind=args.kind,
        encoder=args.encoder,
        metric=args.metric,
        copy_corpus=args.copy_corpus,
        overwrite=args.overwrite,
        progress=not args.quiet and sys.stderr.isatty(),
        **options,
    )
    seconds = time.perf_counter() - start
    passport = read_manifest(folder)
    count, dim = passport["corpus"]["count"], passport["index"]["dimension"]
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    _say(f"{args.out}: {count} passages x {dim}, {size:.1f} MB, {seconds:.1f} s")


def _search(args: argparse.Namespace) -> None:
    found = load_retriever(args.folder, args.corpus).search(args.query, args.top_k)
    for query, passages in zip(args.query, found, strict=True):
        if args.json:
            rows = [{"id": p.id, "contents": p.contents, "score": p.score} for p in passages]
            _say(json.dumps({"query": query, "passages": rows}, ensure_ascii=False))
            continue
        _say(f"# {query}")
        for rank, passage in enumerate(passages, 1):
            _say(f"{rank}. [{passage.id}] {passage.score:.3f}\n{passage.contents}\n")


def _info(args: argparse.Namespace) -> None:
    passport: dict[str, Any] = read_manifest(args.folder)
    if args.check:
        load_retriever(args.folder, args.corpus)
    _say(json.dumps(passport, indent=2, ensure_ascii=False))


def _say(text: str) -> None:
    sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8") + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="research index",
        description="Make, ask and inspect passage indexes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build(commands.add_parser("build", help="index a JSONL corpus", allow_abbrev=False))

    search = commands.add_parser("search", help="print the best passages of queries")
    search.add_argument("folder", type=Path, help="folder that `research index build` made")
    search.add_argument("query", nargs="+", help="one or more queries, each in quotes")
    search.add_argument("--top-k", type=int, default=5, help="passages a query (default: 5)")
    search.add_argument("--corpus", type=Path, help="where the corpus lies now, if it has moved")
    search.add_argument("--json", action="store_true", help="one JSON object a query")
    search.set_defaults(run=_search)

    info = commands.add_parser("info", help="print the passport of an index")
    info.add_argument("folder", type=Path, help="folder that `research index build` made")
    info.add_argument("--check", action="store_true", help="also check that all parts fit")
    info.add_argument("--corpus", type=Path, help="where the corpus lies now, if it has moved")
    info.set_defaults(run=_info)
    return parser


def _add_build(build: argparse.ArgumentParser) -> None:
    add = build.add_argument
    add("--corpus", type=Path, required=True, help='JSONL file of {"id", "contents"}')
    add("--out", type=Path, required=True, help="folder to make")
    add("--kind", default="dense", help="dense: vectors in a FAISS flat index (default)")
    add("--encoder", default=SKETCH, help=f"{SKETCH} (default), or a Hugging Face name or path")
    add("--metric", choices=("ip", "l2"), default="ip", help="inner product or distance")
    add("--copy-corpus", action="store_true", help="copy the corpus into the folder")
    add("--overwrite", action="store_true", help="replace the index that is there")
    add("--quiet", action="store_true", help="no progress bar")
    build.set_defaults(run=_build)

    sketch = build.add_argument_group(f"options of {SKETCH}").add_argument
    sketch("--dim", type=int, help="length of the vectors (default: 2048)")
    sketch("--k1", type=float, help="saturation of repeated words (default: 0.9)")
    sketch("--b", type=float, help="penalty of long passages, 0 to 1 (default: 0.75)")
    sketch("--title-weight", type=int, help="how often a title counts (default: 2)")
    sketch("--num-hashes", type=int, help="cells a word is written to (default: 8)")

    model = build.add_argument_group("options of a Hugging Face encoder").add_argument
    model("--query-prefix", help="default: what E5, BGE, GTE or Contriever were trained with")
    model("--passage-prefix", help="the same for passages")
    model("--pooling", choices=("mean", "cls", "last"), help="default: by model family")
    model("--normalize", action=argparse.BooleanOptionalAction, help="vectors of length 1")
    model("--max-length", type=int, help="tokens of a text (default: 512)")
    model("--batch-size", type=int, help="texts in one forward pass (default: 64)")
    model("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32")
    model("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    model("--revision", help="branch, tag or commit on the Hub")

"""``research index``: make an index, ask it, read its manifest, tune it, serve it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval.arguments import (
    MODEL_OPTIONS,
    SKETCH_OPTIONS,
    add_encoder_arguments,
    add_milvus_arguments,
    add_model_arguments,
    add_storage_arguments,
    milvus_options,
    storage_of,
)
from research_rl.envs.retrieval.corpus import grown_corpus, local_corpus
from research_rl.envs.retrieval.encoders import SKETCH
from research_rl.envs.retrieval.index import (
    MANIFEST,
    MILVUS,
    TARGET,
    adopt_index,
    build_index,
    build_milvus,
    extend_index,
    load_retriever,
    merge_shards,
    read_manifest,
    size,
    tune_folder,
    tune_fusion,
)
from research_rl.envs.system import CommandLine, did_you_mean, printable, printable_json
from research_rl.envs.types import search_checked

_COMMANDS = ("build", "add", "merge", "adopt", "search", "info", "tune", "serve")
_STRICT = "refuse bad rows; without it they are counted and left out, unless most are bad"
_EXAMPLES = """examples:
  research index build --corpus corpus.jsonl --out index
  research index build --corpus corpus.jsonl --out index --kind hybrid --encoder intfloat/e5-base-v2
  research index build --corpus wiki.jsonl --out wiki --encoder intfloat/e5-base-v2 --type ivf-sq8
  research index add wiki --corpus wiki-and-more.jsonl
  research index build --corpus wiki.jsonl --out part0 --encoder intfloat/e5-base-v2 --shard 0/2
  research index merge part0 part1 --out wiki --type ivf-sq8
  research index adopt --faiss e5_Flat.index --corpus wiki-18.jsonl --encoder intfloat/e5-base-v2 \\
      --out wiki
  research index search index "Who founded Oslo?" --top-k 3
  research index tune wiki --recall 0.98
  research index serve wiki --port 8000
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand.

    Raises:
        SystemExit: code 2 with one line on stderr for whatever the user can mend.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-") and given[0] not in _COMMANDS:
        hint = did_you_mean(given[0], _COMMANDS)
        _fail(f"no command {given[0]!r} (known: {', '.join(_COMMANDS)}){hint}")
    args = _parser().parse_args(given)
    try:
        args.run(args)
    except BrokenPipeError:  # nobody reads the output any more
        raise
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    sys.stderr.write(printable(f"research index: error: {line}\n"))
    raise SystemExit(2)


def _build(args: argparse.Namespace) -> None:
    options = _encoder_options(args)
    milvus = milvus_options(args)
    start = time.perf_counter()
    corpus = local_corpus(args.corpus, args.out, progress=_shows_progress(args), strict=args.strict)
    if args.kind == MILVUS:
        options |= milvus | {"overwrite": args.overwrite, "progress": _shows_progress(args)}
        options |= {} if args.quiet else {"report": _note}
        folder = build_milvus(corpus, args.out, args.encoder, strict=args.strict, **options)
        _done(args.out, folder, time.perf_counter() - start)
        return
    folder = build_index(
        corpus,
        args.out,
        kind=args.kind,
        encoder=args.encoder,
        copy_corpus=args.copy_corpus,
        overwrite=args.overwrite,
        progress=_shows_progress(args),
        storage=storage_of(args),
        shard=args.shard,
        report=None if args.quiet else _note,
        strict=args.strict,
        **options,
    )
    _done(args.out, folder, time.perf_counter() - start)


def _add(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    corpus = args.corpus
    if corpus is not None:
        corpus = grown_corpus(
            corpus, args.folder, progress=_shows_progress(args), strict=args.strict
        )
    folder = extend_index(
        args.folder,
        corpus,
        memory=args.memory,
        progress=_shows_progress(args),
        report=None if args.quiet else _note,
        strict=args.strict,
    )
    _done(args.folder, folder, time.perf_counter() - start)


def _merge(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    folder = merge_shards(
        args.shards,
        args.out,
        corpus=args.corpus,
        storage=storage_of(args),
        copy_corpus=args.copy_corpus,
        overwrite=args.overwrite,
        progress=_shows_progress(args),
        report=None if args.quiet else _note,
    )
    _done(args.out, folder, time.perf_counter() - start)


def _adopt(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    folder = adopt_index(
        args.faiss,
        local_corpus(args.corpus, args.out, progress=_shows_progress(args)),
        args.encoder,
        args.out,
        nprobe=args.nprobe,
        ef_search=args.ef_search,
        overwrite=args.overwrite,
        progress=_shows_progress(args),
        report=_note,
        checked=not args.unchecked,
        **_given(args, MODEL_OPTIONS),
    )
    _done(args.out, folder, time.perf_counter() - start)


def _tune_fusion(args: argparse.Namespace) -> None:
    found = tune_fusion(args.folder, read_questions(args.questions), corpus=args.corpus)
    shares = (found.recall, found.equal, *found.members)
    ours, equal, dense, words = (f"{100 * share:.1f}" for share in shares)
    gap = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    _say(
        f"{args.folder}: weights {found.weights[0]:g} (vectors) and {found.weights[1]:g} (words), "
        f"chosen by every second question; on the other {found.questions} recall@{found.k} {ours} "
        f"%, with equal weights {equal}, vectors alone {dense}, words alone {words}; ahead of the "
        f"better one by {gap} points (95 %)"
        + ("" if found.worth_it else ": not surely worth searching twice")
    )


def _tune(args: argparse.Namespace) -> None:
    if args.questions:
        _tune_fusion(args)
        return
    found = tune_folder(args.folder, args.recall, args.corpus)
    known = read_manifest(args.folder)["index"]
    search_width = next(name for name in ("nprobe", "efSearch") if name in known)
    met = (
        "" if found["recall"] >= args.recall else f", less than {args.recall}: no width gives more"
    )
    against = f" against {found['against']}" if "against" in found else ""
    _say(
        f"{args.folder}: {search_width} {known[search_width]}, "
        f"recall@{found['k']} {found['recall']:.3f}{against}{met}"
    )


def _search(args: argparse.Namespace) -> None:
    if args.top_k < 1:
        _fail(f"--top-k must be at least 1, got {args.top_k}")
    if not all(query.strip() for query in args.query):
        _fail("a query must hold a word, got an empty one")
    retriever = load_retriever(args.folder, args.corpus, args.mmap)
    found = search_checked(retriever, args.query, args.top_k)
    for query, passages in zip(args.query, found, strict=True):
        if args.json:
            rows = [{n: v for n, v in asdict(p).items() if v or n != "source"} for p in passages]
            row = {"query": query, "passages": rows}
            _say(printable_json(json.dumps(row, ensure_ascii=False)))
            continue
        _say(f"# {query}")
        for rank, passage in enumerate(passages, 1):
            head = f"{rank}. [{passage.id}] {passage.score:.3f} {passage.source}".rstrip()
            _say(f"{head}\n{passage.contents}\n")
        if not passages:
            _say("no passage found\n")


def _info(args: argparse.Namespace) -> None:
    manifest: dict[str, Any] = read_manifest(args.folder)
    if args.check:
        load_retriever(args.folder, args.corpus)
    _say(printable_json(json.dumps(manifest, indent=2, ensure_ascii=False)))


def _done(name: Path, folder: Path, seconds: float) -> None:
    """Say what was made."""
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if not (folder / MANIFEST).is_file():
        _say(f"{name}: one shard, {size(taken)}, {seconds:.1f} s")
        return
    manifest = read_manifest(folder)
    shape = f" x {kept['dimension']}" if (kept := manifest.get("index")) else ""
    count = manifest["corpus"]["count"]
    _say(f"{name}: {count} passages{shape}, {size(taken)}, {seconds:.1f} s")


def _encoder_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given options of the encoder, or of BM25; refuse those of another one."""
    options = _given(args, SKETCH_OPTIONS + MODEL_OPTIONS)
    own: Collection[str] = SKETCH_OPTIONS if args.encoder == SKETCH else MODEL_OPTIONS
    whose = args.encoder
    words_alone = args.kind == MILVUS and args.search == "bm25"
    if args.kind == "bm25" or words_alone:
        own, whose = ("k1", "b", "title_weight"), "none, for BM25 has no encoder"
    elif args.kind == "hybrid" or args.search == "hybrid":
        own = {*own, "k1", "b", "title_weight"}
    if foreign := sorted(set(options) - set(own)):
        flags = ", ".join("--" + name.replace("_", "-") for name in foreign)
        _fail(f"{flags} must not be given with --encoder {whose}; leave it out")
    return options


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _shows_progress(args: argparse.Namespace) -> bool:
    return not args.quiet


def _note(line: str) -> None:
    sys.stderr.write(printable(line) + "\n")


def _say(text: str) -> None:
    sys.stdout.write(printable(text) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research index",
        description="Make, ask, inspect and serve passage indexes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build(commands.add_parser("build", help="index a JSONL corpus", allow_abbrev=False))
    _add_add(commands.add_parser("add", help="put new passages behind", allow_abbrev=False))
    _add_merge(commands.add_parser("merge", help="put shards together", allow_abbrev=False))
    _add_adopt(
        commands.add_parser(
            "adopt", help="take over a FAISS index of FlashRAG or Search-R1", allow_abbrev=False
        )
    )
    _add_readers(commands)
    serve = commands.add_parser(
        "serve", help="answer over HTTP, in every dialect", allow_abbrev=False
    )
    from research_rl.envs.retrieval.web import add_serve_arguments, run_serve

    add_serve_arguments(serve)
    serve.set_defaults(run=run_serve)
    return parser


def _add_build(build: argparse.ArgumentParser) -> None:
    add = build.add_argument
    add(
        "--corpus",
        required=True,
        help='JSONL file of {"id", "contents"}; TSV, CSV, parquet, a JSON array, .gz, KILT, SQuAD, '
        "questions with paragraphs, a folder of BEIR or save_to_disk, or a data set on the Hub, "
        "owner/name[:config], are converted to it",
    )
    add("--kind", default="dense", help="dense (default), bm25, hybrid for both, or milvus")
    add("--encoder", default=SKETCH, help=f"{SKETCH} (default), or a Hugging Face name or path")
    add("--strict", action="store_true", help=_STRICT)
    add("--shard", help="i/n: encode the i-th of n parts only, to be merged")
    _add_making(build)
    add_storage_arguments(build)
    add_milvus_arguments(build)
    add_encoder_arguments(build)
    build.set_defaults(run=_build)


def _add_add(add: argparse.ArgumentParser) -> None:
    add.add_argument("folder", type=Path, help="folder that `research index build` made")
    add.add_argument(
        "--corpus",
        help="the passages of the index, and the new ones behind them (default: the corpus of the "
        "index, to which they were appended)",
    )
    add.add_argument("--memory", help="what it may take, such as 2GB (default: 4/5 of all)")
    add.add_argument("--quiet", action="store_true", help="no progress bar, no estimate")
    add.add_argument("--strict", action="store_true", help=_STRICT)
    add.set_defaults(run=_add)


def _add_merge(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("shards", nargs="+", type=Path, help="all folders made with --shard")
    merge.add_argument("--corpus", type=Path, help="where the corpus lies now, if it has moved")
    _add_making(merge)
    add_storage_arguments(merge)
    merge.set_defaults(run=_merge)


def _add_adopt(adopt: argparse.ArgumentParser) -> None:
    add = adopt.add_argument
    add("--faiss", type=Path, required=True, help="FAISS index; stays where it is")
    add("--corpus", type=Path, required=True, help="JSONL file of its passages")
    add("--encoder", required=True, help="Hugging Face name or path that made the vectors")
    add("--nprobe", type=int, help="lists an IVF index looks into")
    add("--ef-search", type=int, help="passages an HNSW index walks over")
    add(
        "--unchecked",
        action="store_true",
        help="take it also if passages that are encoded again do not find themselves",
    )
    _add_making(adopt, copies=False)
    add_model_arguments(adopt)
    adopt.set_defaults(run=_adopt)


def _add_making(parser: argparse.ArgumentParser, copies: bool = True) -> None:
    """Add what every command that makes a folder takes."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to make")
    if copies:
        add("--copy-corpus", action="store_true", help="copy the corpus into the folder")
    add("--overwrite", action="store_true", help="replace the index that is there")
    add("--quiet", action="store_true", help="no progress bar, no estimate")


def _add_readers(commands: Any) -> None:
    """Add the commands that read a folder."""
    search = commands.add_parser(
        "search", help="print the best passages of queries", allow_abbrev=False
    )
    search.add_argument("folder", type=Path, help="folder that `research index build` made")
    search.add_argument("query", nargs="+", help="one or more queries, each in quotes")
    search.add_argument("--top-k", type=int, default=5, help="passages a query (default: 5)")
    search.add_argument("--corpus", type=Path, help="where the corpus lies now, if it has moved")
    search.add_argument("--json", action="store_true", help="one JSON object a query")
    search.add_argument(
        "--mmap",
        action=argparse.BooleanOptionalAction,
        help="leave vectors on disk (default: if they fill half of the memory)",
    )
    search.set_defaults(run=_search)

    info = commands.add_parser("info", help="print the manifest of an index", allow_abbrev=False)
    info.add_argument("folder", type=Path, help="folder that `research index build` made")
    info.add_argument("--check", action="store_true", help="also check that all parts fit")
    info.add_argument("--corpus", type=Path, help="where the corpus lies now, if it has moved")
    info.set_defaults(run=_info)

    tune = commands.add_parser(
        "tune", help="find nprobe or efSearch for a recall, and keep it", allow_abbrev=False
    )
    tune.add_argument("folder", type=Path, help="folder that `research index build` made")
    tune.add_argument(
        "--recall", type=float, default=TARGET, help=f"of the exact first 5 (default: {TARGET})"
    )
    tune.add_argument("--corpus", type=Path, help="where the corpus lies now, if it has moved")
    tune.add_argument(
        "--questions", help="with gold_ids: choose the weights of a hybrid index by them instead"
    )
    tune.set_defaults(run=_tune)

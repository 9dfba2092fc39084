"""Arguments of ``research index`` that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from research_rl.envs.retrieval.encoders import SKETCH
from research_rl.envs.retrieval.index import MILVUS, TARGET, Storage, metric_of
from research_rl.envs.retrieval.vectors import TYPES, Metric

SKETCH_OPTIONS = ("dim", "k1", "b", "title_weight", "num_hashes")
MODEL_OPTIONS = (
    *("query_prefix", "passage_prefix", "pooling", "normalize", "max_length"),
    *("batch_size", "dtype", "device", "revision", "query_model"),
)


def storage_of(args: argparse.Namespace) -> Storage:
    """Return how vectors are to be kept; shards that are merged have a metric of their own."""
    shards = getattr(args, "shards", None)
    known: Metric = metric_of(shards) if shards and args.metric is None else "ip"
    return Storage(
        index_type=args.type,
        metric=args.metric or known,
        fp16=args.fp16,
        nprobe=args.nprobe,
        ef_search=args.ef_search,
        recall=args.recall,
        memory=args.memory,
    )


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how vectors are kept and found."""
    add = parser.add_argument_group("how vectors are kept").add_argument
    add("--type", default="flat", help=f"{', '.join(TYPES)}, or a FAISS factory string (flat)")
    add("--metric", choices=("ip", "l2"), help="inner product or distance (ip, or the shards')")
    add("--fp16", action="store_true", help="16 bits a number, for flat, ivf and hnsw")
    add("--nprobe", type=int, help="lists an IVF index looks into (default: found by --recall)")
    add("--ef-search", type=int, help="passages an HNSW index walks over (default: likewise)")
    add("--recall", type=float, default=TARGET, help=f"of the exact first 5 (default: {TARGET})")
    add("--memory", help="what the build may take, such as 2GB (default: 4/5 of the machine's)")


def milvus_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``build_milvus`` for its kind, and nothing for others.

    Raises:
        ValueError: an option belongs to another kind.
    """
    if args.kind != MILVUS:
        for name in ("uri", "collection", "search"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"--{name} must go with --kind milvus, got --kind {args.kind}; leave it out"
                )
        return {}
    for name, default in (("shard", None), ("fp16", False), ("copy_corpus", False)):
        if getattr(args, name) != default:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must not be given with --kind milvus; leave it out")
    named = {name: getattr(args, name) for name in ("uri", "collection", "nprobe")}
    named["metric"] = args.metric or "ip"
    named |= {"search": args.search or "dense", "index_type": args.type}
    return named | {"ef_search": args.ef_search}


def add_milvus_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where Milvus is and how it is searched."""
    add = parser.add_argument_group("an index in Milvus (--kind milvus)").add_argument
    add("--uri", help="of the cluster; without one milvus-lite keeps it in the folder")
    add("--collection", help="its name (default: made of the folder's and of what is in it)")
    add("--search", choices=("dense", "bm25", "hybrid"), help="by what (default: dense)")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of every encoder."""
    sketch = parser.add_argument_group(
        f"options of {SKETCH}, and of BM25 (bm25, hybrid)"
    ).add_argument
    sketch("--dim", type=int, help="length of the vectors (default: 2048)")
    sketch("--k1", type=float, help="saturation of repeated words (default: 0.9)")
    sketch("--b", type=float, help="penalty of long passages, 0 to 1 (default: 0.75)")
    sketch("--title-weight", type=int, help="how often a title counts (default: 2)")
    sketch("--num-hashes", type=int, help="cells a word is written to (default: 8)")
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a Hugging Face encoder."""
    model = parser.add_argument_group("options of a Hugging Face encoder").add_argument
    model("--query-prefix", help="default: what E5, BGE, GTE or Contriever were trained with")
    model("--passage-prefix", help="the same for passages")
    model("--pooling", choices=("mean", "cls", "last"), help="default: by model family")
    model("--normalize", action=argparse.BooleanOptionalAction, help="vectors of length 1")
    model("--max-length", type=int, help="tokens of a text (default: the model's, at most 512)")
    model("--batch-size", type=int, help="texts in one forward pass (default: 64)")
    model("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32")
    model("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    model("--revision", help="branch, tag or commit on the Hub")
    model("--query-model", help="another model for queries, as DPR has")

"""Builds of an index in Milvus: a folder with the manifest, and a collection that holds the rest.

``build_milvus("wiki.jsonl", "indexes/wiki", uri="http://host:19530")`` fills a cluster; without a
uri milvus-lite keeps the collection in the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.corpus import Corpus
from research_rl.envs.retrieval.encoders import NEWEST_RULE, SKETCH, Encoder, make_encoder
from research_rl.envs.retrieval.index.build_steps import (
    SourceFile,
    bar,
    check_unchanged,
    fit_encoder,
    move_into_place,
    open_corpus,
    workplace,
)
from research_rl.envs.retrieval.index.manifest import (
    INDEX_FORMAT,
    MANIFEST,
    MILVUS,
    check_target,
    corpus_manifest,
    read_manifest,
    versions,
    write_json,
)
from research_rl.envs.retrieval.search import (
    DEFAULTS,
    LONGEST_ID,
    LONGEST_TEXT,
    PASSPORT_ROW,
    MilvusCollection,
    MilvusSearchBy,
    import_pymilvus,
    lite_uri,
    milvus_words,
)
from research_rl.envs.retrieval.vectors import BLOCK, Metric, factory_string
from research_rl.envs.types import Passage

_TYPES = {
    **{"flat": "FLAT", "ivf": "IVF_FLAT", "ivf-sq8": "IVF_SQ8", "ivf-pq": "IVF_PQ"},
    **{"rabitq": "IVF_RABITQ", "hnsw": "HNSW"},
}
_ROOM = {"id": LONGEST_ID, "contents": LONGEST_TEXT, "words": LONGEST_TEXT}
_REQUEST = 512  # passages of one insertion
_LINKS, _CONSTRUCTION = 32, 200  # of a graph


def build_milvus(
    corpus: str | Path,
    out: str | Path,
    encoder: str | Encoder = SKETCH,
    metric: Metric = "ip",
    uri: str | None = None,
    collection: str | None = None,
    search: MilvusSearchBy = "dense",
    index_type: str = "flat",
    nprobe: int | None = None,
    ef_search: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], object] = lambda _: None,
    strict: bool = True,
    timeout: float = 120.0,
    **options: Any,
) -> Path:
    """Fill a Milvus collection with a corpus and return the folder that opens it.

    Passages lie in the collection, so that the folder, with the manifest and what the encoder
    learned, is small and can be copied to wherever one searches. A build that was cut short goes on
    behind the passages that Milvus has. The token of a cluster is taken from ``MILVUS_TOKEN``.

    Args:
        corpus: JSONL file of passages.
        out: folder to make; must not exist unless ``overwrite``.
        encoder: "bm25-sketch", a Hugging Face name or path, or an Encoder; not with search "bm25".
        metric: "ip" (inner product) or "l2".
        uri: url of a cluster; None takes milvus-lite in the folder.
        collection: its name; None makes one of the folder's name and what is in it.
        search: "dense", "bm25", or "hybrid" for both.
        index_type: "flat", "ivf", "ivf-sq8", "ivf-pq", "rabitq", "hnsw", or a type of Milvus such
            as "AUTOINDEX" or "DISKANN".
        nprobe, ef_search: how widely IVF and HNSW search; None takes an eighth of the lists, 128.
        overwrite: replace an index that is there, and its collection.
        progress: show a progress bar.
        report: called with a line before the work.
        strict: refuse a corpus with bad lines.
        timeout: seconds of a request.
        options: arguments of the encoder, and k1, b and title_weight of BM25.

    Raises:
        CorpusError: the corpus cannot be read.
        FileExistsError: ``out`` or the collection holds something else.
        RetrieverUnavailable: Milvus does not answer.
        ValueError: something that cannot be, such as a passage that Milvus has no room for.
    """
    import_pymilvus()
    target = Path(out).resolve()
    plan = _planned(encoder, metric, search, index_type, (nprobe, ef_search), options)
    check_target(target, overwrite)
    source = SourceFile.of(Path(corpus).resolve())
    return _Work(target, uri, collection, timeout, progress, report, strict).run(plan, source)


@dataclass(frozen=True)
class _Work:
    """Where a collection is filled, and how that is told."""

    target: Path
    uri: str | None
    collection: str | None
    timeout: float
    progress: bool
    report: Callable[[str], object]
    strict: bool

    def run(self, plan: _Plan, source: SourceFile) -> Path:
        """Fill the collection and make the folder, which takes its place at the end."""
        target, uri = self.target, self.uri
        former = read_manifest(target).get("milvus") if (target / MANIFEST).is_file() else None
        work = {"milvus": uri, "corpus": source.identity, **plan.identity()}
        with workplace(target, work) as folder:
            passages, left_out = open_corpus(source, folder, self.progress, self.strict)
            if plan.encoder is not None:
                with bar("counting", len(passages), " passages", self.progress) as advance:
                    fit_encoder(plan.encoder, passages, folder, advance)
            passport = plan.passport(source.sha256, len(passages))
            name = self.collection or _named(target.name, passport)
            place = MilvusCollection(uri or lite_uri(folder), name, self.timeout)
            told = f"at {uri or target}, collection {name}"
            self.report(f"{len(passages)} passages go to Milvus {told}")
            _fill(place, passages, plan, passport, self.progress)
            check_unchanged(source)
            kept = plan.manifest(len(passages))
            kept["milvus"] |= {"uri": uri or lite_uri(Path()), "collection": name}
            known = (len(passages), source.sha256, left_out)
            kept["corpus"] = corpus_manifest(source.path, target, *known)
            write_json(folder / MANIFEST, kept)
            move_into_place(folder, target)
        if uri and former and former["uri"] == uri and former["collection"] != name:
            MilvusCollection(uri, former["collection"], self.timeout).remove()
        return target


@dataclass(frozen=True)
class _Plan:
    """What a collection is to hold, and how it is searched."""

    encoder: Encoder | None
    metric: Metric
    search: MilvusSearchBy
    kind: str
    widths: tuple[int | None, int | None]
    bm25: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """What decides what is inserted."""
        made = None if self.encoder is None else self.encoder.manifest()
        return {"encoder": made, "search": self.search, "type": self.kind, "bm25": self.bm25} | {
            "metric": self.metric
        }

    def passport(self, sha256: str, count: int) -> dict[str, Any]:
        """What the collection says of itself."""
        made = json.dumps(self.identity() | {"words": NEWEST_RULE}, sort_keys=True)
        return {
            "corpus": sha256,
            "passages": count,
            "made": hashlib.sha256(made.encode()).hexdigest()[:16],
        }

    def lists(self, count: int) -> int:
        """How many lists IVF gets, as in an index folder."""
        return int(re.findall(r"\d+", factory_string("ivf", count, 1))[0])

    def width(self, count: int) -> dict[str, int]:
        """The search parameters."""
        nprobe, ef_search = self.widths
        if self.kind.startswith("IVF"):
            return {"nprobe": nprobe or max(1, self.lists(count) // 8)}
        return {"ef": ef_search or 128} if self.kind == "HNSW" else {}

    def index_params(self, count: int) -> dict[str, int]:
        """The parameters of the index of vectors."""
        if self.kind.startswith("IVF"):
            assert self.encoder is not None
            codes = re.findall(r"PQ(\d+)", factory_string("ivf-pq", count, self.encoder.dim))
            coded = {"m": int(codes[0]), "nbits": 8} if self.kind == "IVF_PQ" else {}
            return {"nlist": self.lists(count)} | coded
        return {"M": _LINKS, "efConstruction": _CONSTRUCTION} if self.kind == "HNSW" else {}

    def manifest(self, count: int) -> dict[str, Any]:
        """What the manifest says, but for the place."""
        milvus = {"search": self.search, "type": self.kind, "metric": self.metric}
        kept: dict[str, Any] = {"format": INDEX_FORMAT, "kind": MILVUS}
        kept["milvus"] = milvus | {"width": self.width(count)}
        if self.encoder is not None:
            kept["encoder"] = self.encoder.manifest()
        if self.search != "dense":
            kept["bm25"] = self.bm25
        found = versions("pymilvus", "milvus-lite")
        return kept | {"words": NEWEST_RULE, "versions": found}


def _planned(
    encoder: str | Encoder,
    metric: Metric,
    search: MilvusSearchBy,
    index_type: str,
    widths: tuple[int | None, int | None],
    options: dict[str, Any],
) -> _Plan:
    if search not in ("dense", "bm25", "hybrid"):
        raise ValueError(f"search must be dense, bm25 or hybrid, got {search!r}")
    if metric not in ("ip", "l2"):
        raise ValueError(f"metric must be one of 'ip', 'l2', got {metric!r}")
    kind = _TYPES.get(index_type, index_type)
    if kind != kind.upper():
        raise ValueError(
            f"type must be one of {', '.join(_TYPES)} or a type of Milvus such as AUTOINDEX or "
            f"DISKANN, got {index_type!r}"
        )
    nprobe, ef_search = widths
    if nprobe is not None and (nprobe < 1 or not kind.startswith("IVF")):
        raise ValueError(f"nprobe must be at least 1 and go with an ivf type, got {nprobe}")
    if ef_search is not None and (ef_search < 1 or kind != "HNSW"):
        raise ValueError(f"ef_search must be at least 1 and go with hnsw, got {ef_search}")
    counting = DEFAULTS | {k: v for k, v in options.items() if search != "dense" and k in DEFAULTS}
    if search == "bm25":
        if encoder != SKETCH or kind != "FLAT" or options.keys() - DEFAULTS:
            raise ValueError(
                "search bm25 keeps no vectors, so encoder, its options and type must be left out; "
                "take hybrid for words and vectors"
            )
        return _Plan(None, metric, search, kind, widths, counting)
    others = DEFAULTS if search == "hybrid" and encoder != SKETCH else {}
    own = {name: value for name, value in options.items() if name not in others}
    made = make_encoder(encoder, **own) if isinstance(encoder, str) else encoder
    return _Plan(made, metric, search, kind, widths, counting)


def _named(folder: str, passport: dict[str, Any]) -> str:
    """Return a name that Milvus allows, and that no other content has."""
    plain = re.sub(r"\W", "_", folder, flags=re.ASCII)[:100]
    digest = hashlib.sha256(json.dumps(passport, sort_keys=True).encode()).hexdigest()[:8]
    return f"research_{plain}_{digest}"


def _fill(
    place: MilvusCollection,
    passages: Corpus,
    plan: _Plan,
    passport: dict[str, Any],
    progress: bool,
) -> None:
    """Insert what the collection does not hold yet, and close it.

    Raises:
        FileExistsError: it holds something else.
        ValueError: a passage is too long, or has a vector that is not finite.
    """
    try:
        found = place.passport()
        done = place.count() // BLOCK * BLOCK if found is not None else 0
        if found is None:
            _create(place, plan, passport)
        if not found and not done:
            place.put([_stamp(plan, passport)])
        elif found != passport:
            raise FileExistsError(
                f"collection {place.name} of {place.uri} must be new or that of this index, got "
                f"{str(found)[:100]}; choose another --collection"
            )
        with bar("inserting", len(passages), " passages", progress) as advance:
            advance(done)
            for start in range(done, len(passages), BLOCK):
                rows = _rows(passages[start : start + BLOCK], start, plan)
                for first in range(0, len(rows), _REQUEST):
                    place.put(rows[first : first + _REQUEST])
                    advance(len(rows[first : first + _REQUEST]))
                passages.forget()
        place.flush()
        count = place.count()
    finally:
        place.close()
    if count != len(passages):
        raise ValueError(
            f"collection {place.name} must hold {len(passages)} passages now, got {count}; remove "
            "it and build again"
        )


def _stamp(plan: _Plan, passport: dict[str, Any]) -> dict[str, Any]:
    """Return the row that says what a collection is made from."""
    row: dict[str, Any] = {"row": PASSPORT_ROW, "id": "", "contents": json.dumps(passport)}
    if plan.encoder is not None:
        row["vector"] = [0.0] * plan.encoder.dim
    return row | ({"words": ""} if plan.search != "dense" else {})


def _rows(block: Sequence[Passage], start: int, plan: _Plan) -> list[dict[str, Any]]:
    """Return what is inserted of some passages."""
    rows: list[dict[str, Any]] = []
    for row, passage in enumerate(block, start):
        one = {"row": row, "id": passage.id, "contents": passage.contents}
        if plan.search != "dense":
            one["words"] = milvus_words(passage.contents, title_weight=plan.bm25["title_weight"])
        for name, longest in _ROOM.items():
            if (size := len(str(one.get(name, "")).encode("utf-8", "replace"))) > longest:
                raise ValueError(
                    f"{name} of a passage must have at most {longest} bytes for Milvus, got {size} "
                    f"in {passage.id[:80]!r}; cut the passage into several"
                )
        rows.append(one)
    if plan.encoder is not None:
        vectors = plan.encoder.encode_passages([passage.contents for passage in block])
        if not (finite := np.isfinite(vectors).all(axis=1)).all():
            wrong = block[int(np.flatnonzero(~finite)[0])].id
            raise ValueError(f"vectors must be finite, got NaN or infinity for passage {wrong!r}")
        for one, vector in zip(rows, vectors, strict=True):
            one["vector"] = vector.tolist()
    return rows


def _create(place: MilvusCollection, plan: _Plan, passport: dict[str, Any]) -> None:
    """Make the collection with its fields and indexes."""
    milvus, count = import_pymilvus(), passport["passages"]
    kinds = milvus.DataType

    def make(client: Any) -> None:
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", kinds.INT64, is_primary=True)
        schema.add_field("id", kinds.VARCHAR, max_length=LONGEST_ID)
        schema.add_field("contents", kinds.VARCHAR, max_length=LONGEST_TEXT)
        params = client.prepare_index_params()
        if plan.encoder is not None:
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=plan.encoder.dim)
            how = {"metric_type": plan.metric.upper(), "params": plan.index_params(count)}
            params.add_index("vector", index_type=plan.kind, **how)
        if plan.search != "dense":
            schema.add_field("words", kinds.VARCHAR, max_length=LONGEST_TEXT, enable_analyzer=True)
            schema.add_field("sparse", kinds.SPARSE_FLOAT_VECTOR)
            schema.add_function(
                milvus.Function(
                    name="bm25",
                    function_type=milvus.FunctionType.BM25,
                    input_field_names=["words"],
                    output_field_names=["sparse"],
                )
            )
            how = {"bm25_k1": plan.bm25["k1"], "bm25_b": plan.bm25["b"]}
            params.add_index(
                "sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params=how
            )
        client.create_collection(
            place.name, schema=schema, index_params=params, consistency_level="Strong"
        )

    place.ask("a new collection", make)

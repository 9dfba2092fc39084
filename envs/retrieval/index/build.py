"""Builds of an index folder from a corpus: at once, or in shards that are merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research_rl.envs.retrieval.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.encoders import NEWEST_RULE, SKETCH, Encoder, make_encoder
from research_rl.envs.retrieval.index.build_steps import (
    RAW,
    SourceFile,
    bar,
    check_unchanged,
    contents_of,
    direct_header,
    encode,
    fit_encoder,
    move_into_place,
    open_corpus,
    shard_rows,
    store,
    workplace,
)
from research_rl.envs.retrieval.index.estimate import (
    check_plan,
    check_words,
    encoding_seconds,
    estimate_words,
    seconds_to_index,
)
from research_rl.envs.retrieval.index.manifest import (
    BM25,
    INDEX_FORMAT,
    MANIFEST,
    MILVUS,
    VECTORS,
    IndexFolderError,
    check_target,
    check_weights,
    corpus_manifest,
    known_kind,
    versions,
    write_json,
)
from research_rl.envs.retrieval.index.recall import judge, make_sample
from research_rl.envs.retrieval.index.shards import (
    check_metric,
    metric_of,
    parse_shard,
    read_shards,
    write_shard,
)
from research_rl.envs.retrieval.index.storage import Storage
from research_rl.envs.retrieval.search import DEFAULTS, fit_bm25, import_bm25s, save_bm25
from research_rl.envs.retrieval.vectors import Metric, VectorFile, VectorParts
from research_rl.envs.system import warn_of_room

ReportFn = Callable[[str], object]


def build_index(
    corpus: str | Path,
    out: str | Path,
    kind: str = "dense",
    encoder: str | Encoder = SKETCH,
    metric: Metric = "ip",
    copy_corpus: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    storage: Storage | None = None,
    shard: str | None = None,
    report: ReportFn | None = None,
    strict: bool = True,
    **options: Any,
) -> Path:
    """Build an index of a JSONL corpus and return its folder.

    It is made in the folder ``.NAME.building`` beside ``out`` and renamed at the end. A build that
    was cut short, even by ``kill -9``, goes on from there when the same build is started again.

    Args:
        corpus: JSONL file of passages.
        out: folder to make; must not exist unless ``overwrite``, which replaces an index only.
        kind: "dense", "bm25", or "hybrid" for both.
        encoder: "bm25-sketch", a Hugging Face name or path, or an Encoder; not for "bm25".
        metric: "ip" (inner product) or "l2"; that of ``storage`` if that is given.
        copy_corpus: copy the corpus into the folder, which then can be moved alone; a corpus that
            lies in the folder which is replaced is copied in any case.
        overwrite: replace an index that is there.
        progress: show a progress bar.
        storage: how vectors are kept; None keeps them as they are and searches exactly.
        shard: "i/n" encodes the i-th of n parts only, for ``merge_shards``.
        report: called with an estimate before the work and with the recall after it.
        strict: refuse a corpus with bad lines; otherwise they are left out with a warning, unless
            most are such.
        options: arguments of the encoder; for kinds "bm25" and "hybrid" also of ``fit_bm25``.

    Raises:
        CorpusError: the corpus cannot be read.
        FileExistsError: ``out`` exists, or is being built.
        ValueError: something that cannot be, or more memory is needed than may be taken.
    """
    known_kind(kind)
    storage = storage or Storage(metric=metric)
    target = Path(out).resolve()
    part = _part(kind, shard, storage)
    counting, made = _encoder_for(kind, encoder, storage, options)
    check_target(target, overwrite)
    source = SourceFile.of(Path(corpus).resolve())
    copied = copy_corpus or source.path.is_relative_to(target)  # which this build replaces
    job = _Job(kind, storage, source, target, made, copied, progress, report or _silent)
    with workplace(target, job.plan(part)) as folder:
        passages, left_out = open_corpus(source, folder, progress, strict)
        job = replace(job, left_out=left_out)
        if part and made:
            job.make_shard(folder, passages, part, made)
        else:
            job.make(folder, passages, counting)
        move_into_place(folder, target)
    return target


def _part(kind: str, shard: str | None, storage: Storage) -> tuple[int, int] | None:
    """Return which part of how many is built, None for the whole.

    Raises:
        ValueError: a kind, or a setting of ``storage``, that does not go with a shard.
    """
    if kind == MILVUS:
        raise ValueError("kind must be dense, bm25 or hybrid here; build_milvus makes that")
    if shard is None:
        return None
    part = parse_shard(shard)
    if kind != "dense":
        raise ValueError(f"kind must be dense to be built in shards, got {kind!r}")
    default = Storage()
    for name in ("index_type", "nprobe", "ef_search", "recall"):
        if (value := getattr(storage, name)) != getattr(default, name):
            flag = name.removeprefix("index_").replace("_", "-")
            raise ValueError(
                f"{flag} must be left out beside shard, got {value!r}; a shard keeps vectors as "
                f"they are: give --{flag} to research index merge"
            )
    return part


def _encoder_for(
    kind: str, encoder: str | Encoder, storage: Storage, options: dict[str, Any]
) -> tuple[dict[str, Any], Encoder | None]:
    """Return the options of BM25 and the encoder of a kind of index, None where it has none.

    Raises:
        ValueError: an option does not go with the kind, or a vector type with the encoder.
    """
    if kind != "dense":
        import_bm25s()  # a kind that needs it is refused before any work where it is missing
    counting = DEFAULTS | {k: v for k, v in options.items() if kind != "dense" and k in DEFAULTS}
    if kind != "bm25":
        others = DEFAULTS if kind == "hybrid" and encoder != SKETCH else {}
        own = {name: value for name, value in options.items() if name not in others}
        made = make_encoder(encoder, **own) if isinstance(encoder, str) else encoder
        storage.check(made.dim)
        return counting, made
    if unknown := sorted(options.keys() - DEFAULTS):
        raise ValueError(f"BM25 has the options {', '.join(DEFAULTS)}, got {unknown[0]}")
    if encoder != SKETCH or storage != Storage(memory=storage.memory):
        raise ValueError(
            "kind bm25 keeps no vectors, so encoder, type, metric, fp16, nprobe, ef_search and "
            "recall must be left out; take kind hybrid for words and vectors"
        )
    return counting, None


def merge_shards(
    shards: Sequence[str | Path],
    out: str | Path,
    corpus: str | Path | None = None,
    encoder: Encoder | None = None,
    storage: Storage | None = None,
    copy_corpus: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    report: ReportFn | None = None,
) -> Path:
    """Put the shards of a build together and return the folder of the index.

    The index is that of one build with the same ``storage``. Shards are left as they are.

    Args:
        shards: folders made with ``shard="i/n"``, all of them, in any order.
        out: folder to make.
        corpus: where the corpus lies now, if it has moved.
        encoder: only for shards made with an Encoder that ``make_encoder`` does not know.
        storage: how vectors are kept; None keeps them as they are, with the metric of the shards.

    Raises:
        IndexFolderError: a shard is missing, or belongs to something else.
    """
    target = Path(out).resolve()
    check_target(target, overwrite)
    files, about, first = read_shards([Path(folder) for folder in shards])
    storage = storage or Storage(metric=metric_of(shards))
    check_metric(about, first, storage.metric)
    path = Path(corpus or about["corpus"]["path"]).resolve()
    if not path.is_file():
        raise CorpusError(path, None, "there is no such corpus file; pass corpus= (--corpus)")
    source = SourceFile.of(path)
    if source.sha256 != about["corpus"]["sha256"]:
        raise IndexFolderError(
            f"corpus {path} and shard {first} do not belong together (sha256: {source.sha256[:12]}"
            f"... in the file, {about['corpus']['sha256'][:12]}... in the shard)"
        )
    known = about["encoder"]
    made = encoder or make_encoder(known["name"], **known["settings"])
    made.load(first)
    check_weights(first, known, made)
    storage.check(made.dim)
    copied = copy_corpus or path.is_relative_to(target)  # which this build replaces
    job = _Job("dense", storage, source, target, made, copied, progress, report or _silent)
    with workplace(target, {"merge": len(files), "corpus": source.identity}) as folder:
        passages, left_out = open_corpus(source, folder, progress, about.get("strict", True))
        job = replace(job, left_out=left_out)
        plan = storage.estimate(0, len(passages), made.dim)
        job.report(str(plan))
        warn_of_room(target.parent, "the index", plan.disk + plan.scratch)
        check_plan(plan, storage.limit, storage.fitting(0, len(passages), made.dim))
        made.save(folder)
        kept = job.keep(folder, passages, made, VectorParts(files), None)
        job.finish(folder, len(passages), kept)
        move_into_place(folder, target)
    return target


@dataclass(frozen=True)
class _Job:
    kind: str
    storage: Storage
    source: SourceFile
    target: Path
    encoder: Encoder | None
    copy_corpus: bool
    progress: bool
    report: ReportFn
    left_out: int = 0

    def plan(self, shard: tuple[int, int] | None) -> dict[str, Any]:
        """Everything that decides what vectors are made."""
        return {
            "corpus": self.source.identity,
            "encoder": self._encoder_manifest(),
            "half": self.storage.fp16,
            "direct": self._is_direct(shard),
            "metric": self.storage.metric,
            "shard": shard,
        }

    def make(self, folder: Path, passages: Corpus, bm25_settings: dict[str, Any]) -> None:
        """Fill the folder of an index."""
        kept: dict[str, Any] = {}
        if self.kind != "dense":
            plan = estimate_words(passages, bm25_settings)
            self.report(str(plan))
            check_words(plan, self.storage.limit)
        if self.encoder is not None:
            kept = self._make_dense(folder, passages, self.encoder)
        if self.kind != "dense":
            with bar("counting", len(passages), " passages", self.progress) as advance:
                model = fit_bm25(contents_of(passages, advance), **bm25_settings)
            save_bm25(model, folder / BM25)
            kept |= {"bm25": bm25_settings, "words": NEWEST_RULE}
        self.finish(folder, len(passages), kept)

    def make_shard(
        self, folder: Path, passages: Corpus, shard: tuple[int, int], encoder: Encoder
    ) -> None:
        """Fill the folder of a shard."""
        rows = shard_rows(len(passages), shard)
        if not rows:
            raise ValueError(
                f"shard {shard[0]}/{shard[1]} must hold passages, got a corpus of {len(passages)}; "
                "make fewer shards"
            )
        self._fit(folder, passages, encoder)
        kept = replace(self.storage, index_type="flat", nprobe=None, ef_search=None)
        self._estimate(encoder, passages, len(rows), kept)
        file = VectorFile(folder / RAW, encoder.dim, self.storage.fp16)
        self._encode(passages, rows, encoder, file)
        corpus = {"path": str(self.source.path), "sha256": self.source.sha256}
        about = {
            "count": len(passages),
            "encoder": self._encoder_manifest(),
            "corpus": corpus,
            "strict": not self.left_out,
            "metric": self.storage.metric,
        }
        write_shard(folder, shard, rows, file, about)

    def keep(
        self,
        folder: Path,
        passages: Corpus,
        encoder: Encoder,
        parts: VectorParts,
        written: VectorFile | None,
    ) -> dict[str, Any]:
        """Make the FAISS file of all vectors, unless it is written, and return its manifest."""
        factory = self.storage.factory(len(passages), encoder.dim)
        metric, limit = self.storage.metric, self.storage.limit
        if written is None:
            with bar("indexing", len(passages), " passages", self.progress) as advance:
                store(parts, folder / VECTORS, factory, metric, limit, advance)
        index = {"type": factory, "metric": metric, "dimension": encoder.dim}
        kept = {"encoder": self._encoder_manifest(), "index": index}
        if factory != "Flat":
            sample = make_sample(passages, parts, encoder, metric)
            passages.forget()
            search_width, recall = judge(folder, sample, self.storage.width, self.storage.recall)
            index |= search_width
            kept["recall"] = recall
            how = "".join(f" with {name} {value}" for name, value in search_width.items())
            self.report(
                f"recall@{recall['k']} {recall['recall']:.3f}{how}, against exact search for "
                f"{recall['queries']} sampled queries"
            )
        return kept

    def finish(self, folder: Path, count: int, kept: dict[str, Any]) -> None:
        """Write the manifest, and the copy of the corpus if that is wanted."""
        where, sha256 = self.source.path, self.source.sha256
        if self.copy_corpus:
            where = folder / "corpus.jsonl"
            shutil.copyfile(self.source.path, where)
        check_unchanged(self.source)
        (folder / RAW).unlink(missing_ok=True)
        target = folder if self.copy_corpus else self.target
        manifest = {
            "format": INDEX_FORMAT,
            "kind": self.kind,
            "corpus": corpus_manifest(where, target, count, sha256, self.left_out),
        }
        write_json(folder / MANIFEST, manifest | kept | {"versions": versions()})

    def _make_dense(self, folder: Path, passages: Corpus, encoder: Encoder) -> dict[str, Any]:
        count = len(passages)
        direct = self._is_direct(None)
        self._estimate(encoder, passages, count, self.storage)
        self._fit(folder, passages, encoder)
        if direct:
            header = direct_header(encoder.dim, self.storage.metric, count)
            file = VectorFile(folder / VECTORS, encoder.dim, header=header)
        else:
            file = VectorFile(folder / RAW, encoder.dim, self.storage.fp16)
        self._encode(passages, range(count), encoder, file)
        return self.keep(folder, passages, encoder, VectorParts([file]), file if direct else None)

    def _fit(self, folder: Path, passages: Corpus, encoder: Encoder) -> None:
        with bar("counting", len(passages), " passages", self.progress) as advance:
            fit_encoder(encoder, passages, folder, advance)

    def _encode(self, passages: Corpus, rows: range, encoder: Encoder, file: VectorFile) -> None:
        with bar("encoding", len(rows), " passages", self.progress) as advance:
            encode(passages, rows, encoder, file, advance)

    def _estimate(self, encoder: Encoder, passages: Corpus, rows: int, storage: Storage) -> None:
        """Report what the build will take, and refuse it if that is too much memory."""
        count, dim, seconds = len(passages), encoder.dim, None
        if self.report is not _silent:
            seconds = encoding_seconds(encoder, passages, rows)
            seconds += seconds_to_index(storage.factory(count, dim), storage.metric, count, dim)
        plan = storage.estimate(rows, count, dim, seconds)
        if rows < count:  # a shard
            plan = replace(plan, count=rows, disk=plan.disk * rows // count, scratch=0)
        self.report(str(plan))
        warn_of_room(self.target.parent, "the index", plan.disk + plan.scratch)
        check_plan(plan, storage.limit, storage.fitting(rows, count, dim))

    def _is_direct(self, shard: tuple[int, int] | None) -> bool:
        """Whether vectors are written into the FAISS file as they are made."""
        flat = self.storage.index_type.lower() == "flat" and not self.storage.fp16
        return flat and shard is None

    def _encoder_manifest(self) -> dict[str, Any] | None:
        return None if self.encoder is None else self.encoder.manifest()


def _silent(_: str) -> None:
    """Take a report and show it to nobody."""

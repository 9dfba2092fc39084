"""Adoption of an index that somebody else made: FlashRAG's and Search-R1's FAISS file and JSONL."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research_rl.envs.retrieval.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.encoders import SKETCH, Encoder, make_encoder
from research_rl.envs.retrieval.index.build_steps import (
    HASH,
    SourceFile,
    check_unchanged,
    move_into_place,
    open_corpus,
    save_offsets,
    workplace,
)
from research_rl.envs.retrieval.index.likeness import Matched, match_rows
from research_rl.envs.retrieval.index.manifest import (
    INDEX_FORMAT,
    MANIFEST,
    SAMPLE,
    IndexFolderError,
    check_target,
    corpus_manifest,
    near_path,
    versions,
    write_json,
)
from research_rl.envs.retrieval.index.recall import OWN, TARGET, own_sample, recall_manifest
from research_rl.envs.retrieval.vectors import (
    is_inner,
    read_vectors,
    search_width_of,
    search_width_set,
    set_search_width,
)

log = logging.getLogger(__name__)


def adopt_index(
    faiss_file: str | Path,
    corpus: str | Path,
    encoder: str | Encoder,
    out: str | Path,
    nprobe: int | None = None,
    ef_search: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], object] = log.warning,
    checked: bool = True,
    **options: Any,
) -> Path:
    """Write a manifest for an existing FAISS index and its corpus, and return its folder.

    The i-th vector is that of the i-th passage, as FlashRAG and Search-R1 build them, or has an id:
    the row of its passage, or the id of it. Both files stay where they are. Some passages are
    encoded again and must find themselves, which shows a wrong encoder, pooling, corpus or order.
    How much the search width of an IVF or HNSW index finds is measured and reported.

    Args:
        faiss_file: the FAISS index; read memory-mapped.
        corpus: JSONL file of passages.
        encoder: Hugging Face name or path, or an Encoder; the offline encoder makes its own.
        out: folder to make.
        nprobe, ef_search: how widely an IVF or HNSW index searches; None leaves what the file says.
        report: called with a line on how well the vectors match, and one on the recall.
        checked: refuse an index in which most passages do not find themselves.
        options: arguments of the encoder.

    Raises:
        IndexFolderError: the index cannot be read, or does not belong to the corpus or encoder.
    """
    _check_encoder(encoder)
    file, path, target = (Path(p).resolve() for p in (faiss_file, corpus, out))
    check_target(target, overwrite)
    _check_places(target, file, path)
    index = _open(file)
    made = make_encoder(encoder, **options) if isinstance(encoder, str) else encoder
    width = _width(index, {"nprobe": nprobe, "efSearch": ef_search})
    source = SourceFile.of(path)
    with workplace(target, {"adopt": str(file), "corpus": source.identity}) as folder:
        passages, _ = open_corpus(source, folder, progress)
        _check_shape(index, file, passages, made)
        matched = match_rows(index, file, passages, made, checked)
        report(str(matched.likeness))
        passages = _in_order(folder, passages, matched)
        manifest = {
            "format": INDEX_FORMAT,
            "kind": "dense",
            "corpus": corpus_manifest(path, target, len(passages), source.sha256),
            "encoder": made.manifest(),
            "index": _described(matched) | {"file": near_path(file, target)} | width,
            "versions": versions(),
        } | _measured(folder, matched.index, passages, made, out, report)
        check_unchanged(source)
        write_json(folder / MANIFEST, manifest)
        move_into_place(folder, target)
    return target


def _in_order(folder: Path, passages: Corpus, matched: Matched) -> Corpus:
    """Return the passages in the order of the vectors, and keep that in the folder."""
    if matched.order is None:
        return passages
    (folder / HASH).unlink(missing_ok=True)  # or a restart would order them again
    save_offsets(folder, passages.offsets[matched.order])
    return Corpus(passages.path, passages.offsets[matched.order])


def _measured(
    folder: Path,
    index: Any,
    passages: Corpus,
    encoder: Encoder,
    out: str | Path,
    report: Callable[[str], object],
) -> dict[str, Any]:
    """Report what share of its own nearest vectors an index finds, and what to do about little.

    Returns:
        What a manifest says of it; empty for a type without a search width.
    """
    search_width = search_width_of(index)
    if search_width is None:
        return {}
    sample = own_sample(index, passages, encoder)
    sample.save(folder / SAMPLE)
    recall = sample.recall(index)
    said = (
        f"recall@{sample.k} {recall:.3f} with {search_width} {search_width_set(index)}, against a "
        f"search of all its vectors for {len(sample.queries)} sampled queries"
    )
    if recall < TARGET:
        said = f"WARNING: {said}; for more: research index tune {out} --recall {TARGET}"
    report(said)
    return {"recall": recall_manifest(sample, recall) | {"against": OWN}}


def _check_encoder(encoder: str | Encoder) -> None:
    """Refuse the offline encoder, which cannot have made somebody else's index."""
    if encoder == SKETCH:
        raise ValueError(
            f"encoder must be the one that made the index, got {SKETCH!r}, which learns from a "
            "corpus when an index is built and so made no index of others; name a model"
        )


def _described(matched: Matched) -> dict[str, Any]:
    """What the manifest says of a FAISS index."""
    index = matched.index
    known = {
        "type": type(index).__name__.removeprefix("Index"),
        "metric": "ip" if is_inner(index) else "l2",
        "dimension": index.d,
    }
    return known | ({"id_map": True} if matched.mapped else {})


def _check_places(target: Path, index: Path, corpus: Path) -> None:
    """Refuse a missing corpus, and files that would be lost with the folder that is replaced."""
    if not corpus.is_file():
        raise CorpusError(corpus, None, "there is no such corpus file")
    for file in (index, corpus):
        if file.is_relative_to(target):
            raise ValueError(
                f"what is adopted must not lie in the folder that is made, got {file}; it stays "
                "where it is: name another --out"
            )


def _width(index: Any, given: dict[str, int | None]) -> dict[str, int]:
    """Set the search width of an index, if one is given, and return it as the manifest has it.

    Raises:
        ValueError: it is given for another kind of index.
    """
    search_width = search_width_of(index)
    for name, kind in (("nprobe", "IVF"), ("efSearch", "HNSW")):
        if given[name] is not None and name != search_width:
            raise ValueError(
                f"{name} must go with an {kind} index, and this one has "
                f"{search_width or 'nothing to set'}"
            )
    value = given[search_width] if search_width else None
    if search_width is None or value is None:
        return {}
    return {search_width: set_search_width(index, value)}


def _open(file: Path) -> Any:
    if not file.is_file():
        raise IndexFolderError(f"there is no FAISS index at {file}; pass --faiss FILE")
    try:
        return read_vectors(file, mmap=True)
    except RuntimeError as error:
        raise IndexFolderError(f"{file} is no index this FAISS can read: {error}") from error


def _check_shape(index: Any, file: Path, passages: Corpus, encoder: Encoder) -> None:
    if index.ntotal != len(passages):
        raise IndexFolderError(
            f"index {file} must hold one vector for each passage of {passages.path}, got "
            f"{index.ntotal} vectors for {len(passages)} passages; they do not belong together"
        )
    if index.d != encoder.dim:
        raise IndexFolderError(
            f"index {file} must have the dimension of encoder {encoder.name}, {encoder.dim}, got "
            f"{index.d}; pass the encoder that it was made with"
        )

"""Adoption of an index that somebody else made: FlashRAG's and Search-R1's FAISS file and JSONL."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.encoders import SKETCH, Encoder, make_encoder
from research_rl.envs.retrieval.index.build_steps import (
    bar,
    check_unchanged,
    file_identity,
    move_into_place,
    open_corpus,
    workplace,
)
from research_rl.envs.retrieval.index.manifest import (
    INDEX_FORMAT,
    MANIFEST,
    IndexFolderError,
    check_target,
    corpus_manifest,
    near_path,
    versions,
    write_json,
)
from research_rl.envs.retrieval.index.open import read_vectors
from research_rl.envs.retrieval.vectors import (
    import_faiss,
    is_inner,
    search_width_of,
    set_search_width,
)

log = logging.getLogger(__name__)
_CHECKED = 32
_ALIKE = 0.9  # cosine; codes of 8 bits a number stay above 0.99, PQ and one bit fall below


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
    **options: Any,
) -> Path:
    """Write a manifest for an existing FAISS index and its corpus, and return its folder.

    The i-th vector is that of the i-th passage, as FlashRAG and Search-R1 build them. Both files
    stay where they are. Some passages are encoded again and compared with the vectors in the index,
    which shows a wrong encoder, prefix, pooling or corpus.

    Args:
        faiss_file: the FAISS index; read memory-mapped.
        corpus: JSONL file of passages.
        encoder: Hugging Face name or path, or an Encoder; the offline encoder makes its own.
        out: folder to make.
        nprobe: lists an IVF index looks into; None leaves what the file says.
        ef_search: passages an HNSW index walks over; None likewise.
        report: called with one line on how well the vectors match.
        options: arguments of the encoder.

    Raises:
        IndexFolderError: the index cannot be read, or count or dimension differ.
    """
    _check_encoder(encoder)
    file, source, target = (Path(p).resolve() for p in (faiss_file, corpus, out))
    check_target(target, overwrite)
    if not source.is_file():
        raise CorpusError(source, None, "there is no such corpus file")
    _check_outside(target, file, source)
    index = _open(file)
    made = make_encoder(encoder, **options) if isinstance(encoder, str) else encoder
    width = _width(index, {"nprobe": nprobe, "efSearch": ef_search})
    before = file_identity(source)
    with workplace(target, {"adopt": file_identity(file), "corpus": before}) as folder:
        with bar("reading", source.stat().st_size, "B", progress) as advance:
            passages, sha256 = open_corpus(source, folder, advance)
        _check_shape(index, file, passages, made)
        report(_compare(index, passages, made))
        manifest = {
            "format": INDEX_FORMAT,
            "kind": "dense",
            "corpus": corpus_manifest(source, target, len(passages), sha256),
            "encoder": made.manifest(),
            "index": _described(index) | {"file": near_path(file, target)} | width,
            "versions": versions(),
        }
        check_unchanged(source, before)
        write_json(folder / MANIFEST, manifest)
        move_into_place(folder, target)
    return target


def _check_encoder(encoder: str | Encoder) -> None:
    """Refuse the offline encoder, which cannot have made somebody else's index."""
    if encoder == SKETCH:
        raise ValueError(
            f"encoder must be the one that made the index, got {SKETCH!r}, which learns from a "
            "corpus when an index is built and so made no index of others; name a model"
        )


def _described(index: Any) -> dict[str, Any]:
    """What the manifest says of a FAISS index."""
    return {
        "type": type(index).__name__.removeprefix("Index"),
        "metric": "ip" if is_inner(index) else "l2",
        "dimension": index.d,
    }


def _check_outside(target: Path, *files: Path) -> None:
    """Refuse files that would be lost with the folder that is replaced."""
    for file in files:
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


def _compare(index: Any, passages: Corpus, encoder: Encoder) -> str:
    """Encode some passages again, and say how like the vectors of the index they are."""
    places = np.unique(np.linspace(0, len(passages) - 1, _CHECKED).astype(np.int64))
    made = encoder.encode_passages([passages[place].contents for place in places.tolist()])
    try:
        if ivf := import_faiss().try_extract_index_ivf(index):
            ivf.make_direct_map()
        kept = np.stack([index.reconstruct(place) for place in places.tolist()])
    except RuntimeError:
        return "the vectors of this type of index cannot be read back, so they were not compared"
    norms = np.linalg.norm(made, axis=1) * np.linalg.norm(kept, axis=1)
    likeness = float(np.median((made * kept).sum(axis=1) / np.maximum(norms, 1e-12)))
    said = f"{len(places)} passages encoded again: median cosine {likeness:.3f} to the index"
    if likeness >= _ALIKE:
        return said
    return (
        f"WARNING: {said}; unless it is compressed hard, it was made with another encoder, prefix, "
        "pooling or corpus: see --query-prefix, --passage-prefix, --pooling"
    )

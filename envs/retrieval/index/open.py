"""Opening of index folders, after a check that corpus and weights are those they were made from.

A folder holds ``manifest.json``, ``offsets.npy`` (where each passage lies in the
corpus) and, by kind, ``vectors.faiss`` with what the encoder learned, or ``bm25/``, or both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from research_rl.envs.retrieval.corpus import Corpus
from research_rl.envs.retrieval.encoders import Encoder, make_encoder
from research_rl.envs.retrieval.index.build_steps import (
    put_back_replaced,
    remove_replaced,
)
from research_rl.envs.retrieval.index.manifest import (
    BM25,
    MILVUS,
    OFFSETS,
    VECTORS,
    IndexFolderError,
    check_corpus,
    check_weights,
    corpus_of,
    read_manifest,
    rebuild,
)
from research_rl.envs.retrieval.search import (
    CACHED_RESULTS,
    BM25Retriever,
    DenseRetriever,
    MilvusCollection,
    MilvusSearch,
    RankFusion,
    load_bm25,
)
from research_rl.envs.retrieval.vectors import (
    read_vectors,
    search_width_of,
    set_search_width,
    without_id_map,
)
from research_rl.envs.system import file_mark, former_folder, is_unwritten, sha256_of
from research_rl.envs.types import Retriever

_T = TypeVar("_T")
_TRIES = 5
"""How often a folder is opened that others replace meanwhile."""
_CACHE: dict[tuple[Any, ...], tuple[_State, Retriever]] = {}
"""Open retrievers by folder and settings, each with the state of its files when it was opened."""
_CACHE_LOCK = threading.Lock()
_CORPORA: WeakValueDictionary[tuple[str, str], Corpus] = WeakValueDictionary()
_CORPORA_LOCK = threading.Lock()


def load_retriever(
    folder: str | Path,
    corpus: str | Path | None = None,
    mmap: bool | None = None,
    cache_size: int = CACHED_RESULTS,
) -> Retriever:
    """Open an index folder; the same folder gives the same retriever within a process.

    An index that was built anew takes the place of the one that was open; ``forget_retrievers``
    closes all.

    Args:
        folder: what ``build_index`` made.
        corpus: where the corpus lies now, if it has moved.
        mmap: leave the vectors on disk and let the system keep what is searched in memory; None
            does so for files of more than half of this machine's memory.
        cache_size: results that are kept for queries that come again; 0 keeps none.

    Raises:
        IndexFolderError: no index there, or one that does not belong to the corpus; the message
            names the field that differs and the command that mends it.
    """

    def found(place: Path, manifest: dict[str, Any], file: Path) -> Retriever:
        key = (str(place), str(file), mmap, cache_size)
        with _CACHE_LOCK:
            if key not in _CACHE or not _CACHE[key][0].holds(manifest, place, file):
                _CACHE.pop(key, None)  # before the new one is read: both may not fit into memory
                remove_replaced(place)
                again = (str(place), None if corpus is None else str(file), mmap, cache_size)
                state = _State.of(manifest, place, file)
                _CACHE[key] = state, _open(place, manifest, file, again)
            return _CACHE[key][1]

    return _in_one_state(folder, corpus, found)


def _in_one_state(
    folder: str | Path,
    corpus: str | Path | None,
    read: Callable[[Path, dict[str, Any], Path], _T],
) -> _T:
    """Return what ``read`` makes of a folder, its manifest and its corpus, all of one build.

    A build that ends meanwhile replaces the folder; what was read before is then read anew.

    Raises:
        IndexFolderError: there is no index, or it is replaced again and again.
    """
    place = Path(folder).resolve()
    for _ in range(_TRIES):
        put_back_replaced(place)
        try:
            manifest = read_manifest(folder)
            file = corpus_of(place, manifest, corpus)
            parts = _State.parts_of(manifest, place)
        except (IndexFolderError, OSError):
            if not former_folder(place).exists():
                raise
            time.sleep(0.05)  # a build is about to put the new folder in its place
            continue
        try:
            found = read(place, manifest, file)
        except (ValueError, OSError):  # of two builds that were mixed, or of one that is broken
            if _State.is_still(folder, manifest, parts):
                raise
            continue
        if _State.is_still(folder, manifest, parts):
            return found
        del found  # before it is read again: both may not fit into memory
    raise IndexFolderError(
        f"index {folder} was replaced {_TRIES} times while it was opened; open it when it is built"
    )


class _State(NamedTuple):
    """What an index was when it was opened: its manifest, and the marks of its files."""

    manifest: dict[str, Any]
    parts: list[str]
    corpus: str | None

    @classmethod
    def of(cls, manifest: dict[str, Any], folder: Path, file: Path) -> _State:
        return cls(
            manifest, cls.parts_of(manifest, folder), file_mark(file) if file.is_file() else None
        )

    @staticmethod
    def parts_of(manifest: dict[str, Any], folder: Path) -> list[str]:
        if manifest["kind"] == MILVUS:  # an embedded collection's file changes when it is searched
            return []
        vectors = (manifest.get("index") or {}).get("file", VECTORS)
        parts = [folder / OFFSETS, folder / vectors, *sorted((folder / BM25).glob("*"))]
        return [file_mark(part) for part in parts if part.is_file()]

    @classmethod
    def is_still(cls, folder: str | Path, manifest: dict[str, Any], parts: list[str]) -> bool:
        """Return whether the folder holds the manifest and the files that it held before."""
        try:
            now = read_manifest(folder), cls.parts_of(manifest, Path(folder))
        except (IndexFolderError, OSError):  # it is being replaced
            return False
        return now == (manifest, parts)

    def holds(self, manifest: dict[str, Any], folder: Path, file: Path) -> bool:
        """Return whether all is as it was; a corpus of the same bytes is, whatever its times."""
        if (manifest, self.parts_of(manifest, folder)) != (self.manifest, self.parts):
            return False
        if self.corpus is None or not file.is_file():
            return self.corpus is None and not file.is_file()
        same = is_unwritten(file, self.corpus)
        return same or sha256_of(file) == manifest["corpus"]["sha256"]


def open_corpus_of(folder: str | Path, corpus: str | Path | None = None) -> Corpus:
    """Return the passages of an index folder, in the order of its corpus or of its vectors.

    Raises:
        IndexFolderError: no index there, or one that does not belong to the corpus.
    """

    def passages(place: Path, manifest: dict[str, Any], file: Path) -> Corpus:
        check_corpus(place, manifest, file)
        return _open_corpus(place, manifest, file)

    return _in_one_state(folder, corpus, passages)


def forget_retrievers() -> None:
    """Close every index that this process keeps open, except those that somebody still uses."""
    with _CACHE_LOCK:
        _CACHE.clear()


def _open(folder: Path, manifest: dict[str, Any], file: Path, again: tuple[Any, ...]) -> Retriever:
    if manifest["kind"] == MILVUS:
        parts = milvus_parts(folder, manifest)
        return MilvusSearch(**parts, source=(load_retriever, again), cache_size=again[3])
    check_corpus(folder, manifest, file)
    passages = _open_corpus(folder, manifest, file)
    source, (mmap, cache_size) = (load_retriever, again), again[2:]
    kind = manifest["kind"]
    if kind == "dense":
        return _open_dense(folder, manifest, passages, source, mmap, cache_size)
    model = _open_bm25(folder, manifest, passages)
    rule = manifest.get("words", 1)  # an index of before there were rules has the first
    if kind == "bm25":
        return BM25Retriever(model, passages, source, cache_size, rule)
    dense = _open_dense(folder, manifest, passages, None, mmap, 0)
    lexical = BM25Retriever(model, passages, rule=rule)
    weights = manifest.get("fusion", {}).get("weights")
    both = RankFusion([dense, lexical], weights, cache_size=cache_size)
    both.source = source
    return both


def milvus_parts(
    folder: Path,
    manifest: dict[str, Any],
    uri: str | None = None,
    by: str | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
) -> dict[str, Any]:
    """Return the arguments of a ``MilvusSearch`` over the collection of a folder.

    The corpus is not needed: passages lie in the collection, which must be the one of the manifest.

    Args:
        folder: what ``build_milvus`` made.
        manifest: its manifest.
        uri: where the collection lies now; None is where it was made.
        by: "dense", "bm25" or "hybrid"; None is what it was made for.
        timeout, attempts: of a request.

    Raises:
        IndexFolderError: the collection is not there, or another, or not complete.
        RetrieverUnavailable: Milvus does not answer.
    """
    known = manifest["milvus"]
    by = by or known["search"]
    if by != known["search"] and known["search"] != "hybrid":
        raise IndexFolderError(
            f"index {folder} was made to be searched by {known['search']}, got {by!r}; build it "
            "with --search hybrid"
        )
    where = uri or known["uri"]
    if not uri and where.endswith(".db"):
        where = str(folder / where)
        if not Path(where).exists():
            raise IndexFolderError(f"index {folder} is broken: there is no {where}; build it again")
    place = MilvusCollection(where, known["collection"], timeout, attempts)
    found, corpus = place.passport(), manifest["corpus"]
    count = place.count() if found else 0
    if not found or (found.get("corpus"), count) != (corpus["sha256"], corpus["count"]):
        place.disconnect()
        got = f"{count} passages of corpus {str(found.get('corpus'))[:12]}..." if found else "none"
        raise IndexFolderError(
            f"index {folder} must find its collection {place.name} at {where} with "
            f"{corpus['count']} passages of corpus {corpus['sha256'][:12]}..., got {got}; name "
            "where it lies (uri), or build it again"
        )
    encoder = None if by == "bm25" else _encoder_of(folder, manifest, manifest["corpus"]["path"])
    return {
        **{"collection": place, "by": by, "encoder": encoder, "metric": known["metric"]},
        **{"width": known["width"], "rule": manifest.get("words", 1)},
    }


def _open_corpus(folder: Path, manifest: dict[str, Any], file: Path) -> Corpus:
    count = manifest["corpus"]["count"]
    try:
        offsets = np.load(folder / OFFSETS, mmap_mode="r")
    except (OSError, ValueError) as error:
        reason = f"index {folder} is broken ({error}); {rebuild(folder, manifest, file)}"
        raise IndexFolderError(reason) from error
    if offsets.ndim != 2 or offsets.shape[1:] != (2,) or offsets.dtype.kind != "i":
        raise IndexFolderError(
            f"index {folder} must hold whole numbers in two columns as offsets, got "
            f"{offsets.dtype} {offsets.shape}; {rebuild(folder, manifest, file)}"
        )
    if len(offsets) != count:
        raise IndexFolderError(
            f"index {folder} must hold {count} offsets as its manifest says, got {len(offsets)}; "
            + rebuild(folder, manifest, file)
        )
    size = manifest["corpus"]["bytes"]
    # an adopted index may have its passages in another order than the corpus
    rows = offsets[np.argsort(offsets[:, 0])] if "file" in manifest.get("index", {}) else offsets
    places = rows.reshape(-1)
    if len(places) and not (
        places[0] >= 0 and places[-1] <= size and bool((places[1:] >= places[:-1]).all())
    ):
        raise IndexFolderError(
            f"the offsets of index {folder} must rise from 0 to the {size} bytes of the corpus, "
            f"and do not; {rebuild(folder, manifest, file)}"
        )
    return _shared(Corpus(file, offsets), manifest["corpus"]["sha256"])


def _shared(corpus: Corpus, sha256: str) -> Corpus:
    """Return the corpus that another open index has, if it is the same one with the same rows.

    A fusion over indexes of one corpus then reads the texts that it returns alone.
    """
    key = (str(corpus.path), sha256)
    with _CORPORA_LOCK:
        known = _CORPORA.get(key)
        if known is not None and np.array_equal(known.offsets, corpus.offsets):
            return known
        _CORPORA[key] = corpus
    return corpus


def _open_dense(
    folder: Path,
    manifest: dict[str, Any],
    passages: Corpus,
    source: Any,
    mmap: bool | None,
    cache_size: int,
) -> DenseRetriever:
    known = manifest["index"]
    try:
        index = vectors_of(folder, manifest, mmap)
    except (RuntimeError, OSError) as error:
        reason = f"index {folder} is broken ({error}); {rebuild(folder, manifest, passages.path)}"
        raise IndexFolderError(reason) from error
    for what, found, wanted in (
        ("vectors", index.ntotal, len(passages)),
        ("numbers a vector (dimension)", index.d, known["dimension"]),
    ):
        if found != wanted:
            raise IndexFolderError(
                f"index {folder} must hold {wanted} {what} as its manifest says, got {found}; "
                + rebuild(folder, manifest, passages.path)
            )
    if (search_width := search_width_of(index)) and search_width in known:
        set_search_width(index, known[search_width])
    encoder = _encoder_of(folder, manifest, passages.path)
    return DenseRetriever(index, passages, encoder, source, cache_size)


def _encoder_of(folder: Path, manifest: dict[str, Any], corpus: str | Path) -> Encoder:
    """Return the encoder of an index, with what it learned, after a check of its weights."""
    file = Path(corpus)
    name = manifest["encoder"]["name"]
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise IndexFolderError(
            f"the encoder of index {folder} is not at {name}; put it back, or name where it lies "
            f"now and {rebuild(folder, manifest, file)}"
        )
    try:
        encoder = make_encoder(name, **manifest["encoder"]["settings"])
    except (ValueError, TypeError) as error:
        raise IndexFolderError(
            f"the manifest of index {folder} must name settings of its encoder ({error}); "
            + rebuild(folder, manifest, file)
        ) from error
    try:
        encoder.load(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"index {folder} is broken ({error}); {rebuild(folder, manifest, file)}"
        raise IndexFolderError(reason) from error
    check_weights(folder, manifest["encoder"], encoder, rebuild(folder, manifest, file))
    return encoder


def _open_bm25(folder: Path, manifest: dict[str, Any], passages: Corpus) -> Any:
    try:
        model = load_bm25(folder / BM25)
    except (OSError, ValueError, KeyError) as error:
        reason = f"index {folder} is broken ({error}); {rebuild(folder, manifest, passages.path)}"
        raise IndexFolderError(reason) from error
    if model.scores["num_docs"] != len(passages):
        raise IndexFolderError(
            f"index {folder} must know {len(passages)} passages as its manifest says, got "
            f"{model.scores['num_docs']}; {rebuild(folder, manifest, passages.path)}"
        )
    return model


def vectors_of(folder: Path, manifest: dict[str, Any], mmap: bool | None) -> Any:
    """Read the FAISS index of a folder, without the map of ids that an adopted one may have.

    The offsets of such a folder stand in the order of its vectors.
    """
    index = read_vectors(folder / manifest["index"].get("file", VECTORS), mmap)
    return without_id_map(index)[0] if manifest["index"].get("id_map") else index


def open_retriever(retriever: Retriever | str) -> Retriever:
    """Return the retriever itself, or the one in an index folder, which keeps no results."""
    if isinstance(retriever, Retriever):
        return retriever
    return load_retriever(retriever, cache_size=0)

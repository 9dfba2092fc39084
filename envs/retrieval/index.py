"""Build an index folder with its passport, and open it again only with what it was made from.

A folder holds ``manifest.json`` (the passport), ``vectors.faiss``, ``offsets.npy`` (where each
passage lies in the corpus) and what the encoder learned.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.corpus import Corpus, sha256_of
from research_rl.envs.retrieval.dense import (
    DenseRetriever,
    Metric,
    add_passages,
    import_faiss,
    new_index,
)
from research_rl.envs.retrieval.encoders import SKETCH, Encoder, make_encoder
from research_rl.envs.types import Retriever

MANIFEST, VECTORS, OFFSETS = "manifest.json", "vectors.faiss", "offsets.npy"
FORMAT = 1
Progress = Callable[[str, int, str], Any]


class IndexFolderError(ValueError):
    """An index folder is missing, broken or does not belong to the corpus; says what to run."""


def build_index(
    corpus: str | Path,
    out: str | Path,
    kind: str = "dense",
    encoder: str | Encoder = SKETCH,
    metric: Metric = "ip",
    copy_corpus: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> Path:
    """Build an index of a JSONL corpus and return its folder.

    It is made in a temporary folder beside ``out`` and renamed at the end, so a build that was
    interrupted leaves nothing that looks like an index.

    Args:
        corpus: JSONL file of passages.
        out: folder to make; must not exist unless ``overwrite``, which replaces an index only.
        kind: "dense".
        encoder: "bm25-sketch", a Hugging Face name or path, or an Encoder.
        metric: "ip" (inner product) or "l2".
        copy_corpus: copy the corpus into the folder, which then can be moved alone.
        overwrite: replace an index that is there.
        progress: show a progress bar.
        options: arguments of the encoder.

    Raises:
        CorpusError: the corpus cannot be read.
        FileExistsError: ``out`` exists.
    """
    _known_kind(kind)
    new_index(1, metric)
    source, target = Path(corpus).resolve(), Path(out).resolve()
    _check_target(target, overwrite)
    made = make_encoder(encoder, **options) if isinstance(encoder, str) else encoder
    size = source.stat().st_size if source.is_file() else 0
    with _bar("reading", size, "B", progress) as advance:
        passages = Corpus(source, Corpus.scan(source, advance))
    with _temporary_folder(target) as folder:
        if copy_corpus:
            shutil.copyfile(source, folder / "corpus.jsonl")
        with _bar("counting", len(passages), " passages", progress) as advance:
            made.fit(_contents(passages, advance))
        index = new_index(made.dim, metric)
        with _bar("encoding", len(passages), " passages", progress) as advance:
            for done in add_passages(index, (p.contents for p in passages), made):
                advance(done)
        import_faiss().write_index(index, str(folder / VECTORS))
        np.save(folder / OFFSETS, passages.offsets)
        made.save(folder)
        where = folder / "corpus.jsonl" if copy_corpus else source
        corpus_passport = _corpus_passport(where, target, len(passages), copy_corpus)
        passport = _passport(kind, made, metric, corpus_passport)
        text = json.dumps(passport, indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _move_into_place(folder, target)
    return target


_CACHE: dict[tuple[str, str, int], Retriever] = {}
_CACHE_LOCK = threading.Lock()


def load_retriever(folder: str | Path, corpus: str | Path | None = None) -> Retriever:
    """Open an index folder; the same folder gives the same retriever within a process.

    Args:
        folder: what ``build_index`` made.
        corpus: where the corpus lies now, if it has moved.

    Raises:
        IndexFolderError: no index there, or one that does not belong to the corpus; the message
            names the field that differs and the command that mends it.
    """
    place = Path(folder).resolve()
    passport = read_manifest(folder)
    file = corpus_of(place, passport, corpus)
    key = (str(place), str(file), (place / MANIFEST).stat().st_mtime_ns)
    with _CACHE_LOCK:
        if key not in _CACHE:
            _CACHE[key] = _open_dense(place, passport, file, corpus)
        return _CACHE[key]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the passport of an index folder.

    Raises:
        IndexFolderError: there is none, or this version does not know its kind or format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        what = "is no index (it has no manifest.json)" if path.parent.is_dir() else "does not exist"
        raise IndexFolderError(
            f"index folder {folder} {what}; make it: "
            f"research index build --corpus CORPUS.jsonl --out {folder}"
        )
    try:
        passport: Any = json.loads(path.read_text(encoding="utf-8"))
        kind, version = passport["kind"], passport["format"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{path} is not a passport of an index: {error!r}; build the index again"
        raise IndexFolderError(reason) from error
    if version != FORMAT:
        raise IndexFolderError(
            f"{path} must have format {FORMAT}, got {version!r}; build the index again"
        )
    _known_kind(kind)
    return dict(passport)


def corpus_of(folder: Path, passport: dict[str, Any], corpus: str | Path | None = None) -> Path:
    """Return the corpus file of an index: the given one, or the one its passport names."""
    return Path(corpus).resolve() if corpus else (folder / passport["corpus"]["path"]).resolve()


def _open_dense(
    folder: Path, passport: dict[str, Any], file: Path, corpus: str | Path | None
) -> DenseRetriever:
    _check_corpus(folder, passport, file)
    count = passport["corpus"]["count"]
    try:
        index = import_faiss().read_index(str(folder / VECTORS))
        offsets = np.load(folder / OFFSETS)
    except (RuntimeError, OSError, ValueError) as error:
        reason = f"index {folder} is broken ({error}); {_rebuild(folder, passport, file)}"
        raise IndexFolderError(reason) from error
    if not index.ntotal == len(offsets) == count:
        raise IndexFolderError(
            f"index {folder} must hold {count} vectors as its passport says, got {index.ntotal} "
            f"vectors and {len(offsets)} offsets; {_rebuild(folder, passport, file)}"
        )
    encoder = make_encoder(passport["encoder"]["name"], **passport["encoder"]["settings"])
    encoder.load(folder)
    if index.d != passport["index"]["dimension"]:
        raise IndexFolderError(
            f"index {folder} must have dimension {passport['index']['dimension']} as its passport "
            f"says, got {index.d}; {_rebuild(folder, passport, file)}"
        )
    source = (load_retriever, (str(folder), None if corpus is None else str(file)))
    return DenseRetriever(index, Corpus(file, offsets), encoder, source)


def _check_corpus(folder: Path, passport: dict[str, Any], file: Path) -> None:
    """Refuse a corpus whose size or hash is not the passport's.

    A file whose size and time of change are those of the build is not hashed again.
    """
    known = passport["corpus"]
    if not file.is_file():
        raise IndexFolderError(
            f"the corpus of index {folder} is not at {file}; pass corpus= (--corpus) where it "
            "lies now, or build the index again"
        )
    found = file.stat()
    differs = None
    if found.st_size != known["bytes"]:
        differs = f"bytes: {found.st_size} in the file, {known['bytes']} in the passport"
    elif found.st_mtime_ns != known["mtime_ns"] and (sha := sha256_of(file)) != known["sha256"]:
        differs = f"sha256: {sha[:12]}... in the file, {known['sha256'][:12]}... in the passport"
    if differs:
        raise IndexFolderError(
            f"corpus {file} and index {folder} do not belong together ({differs}); "
            + _rebuild(folder, passport, file)
        )


def _rebuild(folder: Path, passport: dict[str, Any], file: Path) -> str:
    return (
        f"build it again: research index build --corpus {file} --out {folder} "
        f"--kind {passport['kind']} --encoder {passport['encoder']['name']} --overwrite"
    )


def _known_kind(kind: str) -> None:
    kinds = ("dense",)
    if kind not in kinds:
        close = get_close_matches(str(kind), kinds)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}{hint}")


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / MANIFEST).is_file():
        raise FileExistsError(f"out must be a new folder or an index, got {target}")
    if not overwrite:
        raise FileExistsError(
            f"out must not exist, got the index {target}; pass overwrite (--overwrite)"
        )


def _corpus_passport(file: Path, target: Path, count: int, copied: bool) -> dict[str, Any]:
    """Describe the corpus; its path is relative to the index if it lies beside or inside it."""
    stat = file.stat()
    if copied:
        path = file.name
    elif file.is_relative_to(target.parent):
        path = Path(os.path.relpath(file, target)).as_posix()
    else:
        path = str(file)
    return {
        "path": path,
        "sha256": sha256_of(file),
        "count": count,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }


def _passport(
    kind: str, encoder: Encoder, metric: Metric, corpus: dict[str, Any]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind,
        "corpus": corpus,
        "encoder": {"name": encoder.name, "settings": encoder.settings()},
        "index": {"type": "Flat", "metric": metric, "dimension": encoder.dim},
        "versions": _versions("research-rl", "numpy", "faiss-cpu", "faiss-gpu", "transformers"),
    }


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _contents(passages: Corpus, advance: Callable[[int], object]) -> Iterator[str]:
    for passage in passages:
        yield passage.contents
        advance(1)


@contextmanager
def _bar(title: str, total: int, unit: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function that moves a progress bar on."""
    if not shown:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, unit_scale=True, leave=False) as bar:
        yield bar.update


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target, and remove what is left of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, target: Path) -> None:
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / "index")
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(target)

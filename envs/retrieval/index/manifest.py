"""The manifest of an index folder: what it was made from, and checks that this is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_rl.envs.system import did_you_mean, file_mark, is_unwritten, sha256_of, write_whole

if TYPE_CHECKING:
    from research_rl.envs.retrieval.encoders import Encoder

MANIFEST = "manifest.json"
"""The file of an index folder that says what it was made from."""
VECTORS, OFFSETS, SAMPLE = "vectors.faiss", "offsets.npy", "sample.npz"
BM25, SHARD = "bm25", "shard.json"
INDEX_FORMAT = 1
MILVUS = "milvus"
INDEX_KINDS = ("dense", "bm25", "hybrid", MILVUS)
_Fields = dict[str, dict[str, type]]
_CORPUS: _Fields = {
    "corpus": {"path": str, "sha256": str, "count": int, "bytes": int, "mtime_ns": int}
}
_DENSE: _Fields = {
    "index": {"type": str, "metric": str, "dimension": int},
    "encoder": {"name": str, "settings": dict},
}
_MILVUS: _Fields = {
    "milvus": {"uri": str, "collection": str, "search": str, "metric": str, "width": dict}
}
_MAY_BE: _Fields = {"index": {"file": str, "nprobe": int, "efSearch": int}}


class IndexFolderError(ValueError):
    """An index folder is missing, broken or does not belong to the corpus; says what to run."""


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of an index folder.

    Raises:
        IndexFolderError: there is none, or this version does not know its kind or format.
    """
    path = Path(folder) / MANIFEST
    if path.with_name(SHARD).is_file():
        raise IndexFolderError(
            f"{folder} is one shard of an index; put them together: "
            f"research index merge {folder} ... --out INDEX"
        )
    if not path.is_file():
        what = "is no index (it has no manifest.json)" if path.parent.is_dir() else "does not exist"
        raise IndexFolderError(
            f"index folder {folder} {what}; make it: "
            f"research index build --corpus CORPUS.jsonl --out {folder}"
        )
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["kind"], manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{path} is not a manifest of an index: {error!r}; build the index again"
        raise IndexFolderError(reason) from error
    if version != INDEX_FORMAT:
        raise IndexFolderError(
            f"{path} must have format {INDEX_FORMAT}, got {version!r}; build the index again"
        )
    known_kind(kind)
    _check_fields(path, manifest, _CORPUS | _fields_of(kind, manifest), must=True)
    _check_fields(path, manifest, _MAY_BE, must=False)
    for part in ("bm25", "versions", "fusion"):
        if not isinstance(manifest.get(part, {}), dict):
            raise IndexFolderError(f"{path} must hold fields in {part}; build the index again")
    return dict(manifest)


def index_contents(folder: str | Path) -> dict[str, Any]:
    """Return what is in an index folder, wherever it lies, by its manifest.

    The place of the corpus and the versions of the libraries are left out: an index that was moved
    or built again from the same is the same one.

    Raises:
        IndexFolderError: there is none, or this version does not know its kind or format.
    """
    manifest = read_manifest(folder)
    kept = {key: value for key, value in manifest.items() if key not in ("corpus", "versions")}
    corpus = manifest["corpus"]
    return kept | {"corpus": {"sha256": corpus["sha256"], "count": corpus["count"]}}


def _fields_of(kind: str, manifest: dict[str, Any]) -> _Fields:
    """Return the fields that the manifest of a kind of index must have besides its corpus."""
    if kind == MILVUS:
        encoder = {"encoder": _DENSE["encoder"]} if manifest.get("encoder") else {}
        return _MILVUS | encoder
    return _DENSE if kind != "bm25" else {}


def _check_fields(path: Path, manifest: dict[str, Any], parts: _Fields, must: bool) -> None:
    """Refuse a manifest with a field of another type, or without one that it must have.

    Raises:
        IndexFolderError: names the field.
    """
    for part, names in parts.items():
        held = manifest.get(part) or {}
        if not isinstance(held, dict):
            raise IndexFolderError(f"{path} must hold fields in {part}; build the index again")
        for name, kind in names.items():
            value = held.get(name)
            if value is None and must:
                raise IndexFolderError(f"{path} must say {part}.{name}; build the index again")
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if value is not None and not (fits and (kind is not int or value >= 0)):
                known = {str: "a text", int: "a whole number, not below 0", dict: "fields"}[kind]
                raise IndexFolderError(
                    f"{path} must have {known} in {part}.{name}, got {str(value)[:60]!r}; build "
                    "the index again"
                )


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader, or a crash, sees the old file or the new one whole."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def known_kind(kind: str) -> None:
    """Refuse an unknown kind of index.

    Raises:
        ValueError: names the kinds, and the one that is probably meant.
    """
    if kind not in INDEX_KINDS:
        hint = did_you_mean(kind, INDEX_KINDS, quoted=True)
        raise ValueError(f"kind must be one of {', '.join(INDEX_KINDS)}, got {kind!r}{hint}")


def corpus_of(folder: Path, manifest: dict[str, Any], corpus: str | Path | None = None) -> Path:
    """Return the corpus file of an index: the given one, or the one its manifest names."""
    return Path(corpus).resolve() if corpus else (folder / manifest["corpus"]["path"]).resolve()


def check_corpus(folder: Path, manifest: dict[str, Any], file: Path) -> None:
    """Refuse a corpus whose size or hash is not the manifest's.

    A large file that nobody has written since the build (``is_unwritten``) is not hashed again; one
    that was copied is, whatever time of change the copy was given.

    Raises:
        IndexFolderError: the file is gone or differs; says in what.
    """
    known = manifest["corpus"]
    if not file.is_file():
        raise IndexFolderError(
            f"the corpus of index {folder} is not at {file}; pass corpus= (--corpus) where it "
            "lies now, or build the index again"
        )
    size = file.stat().st_size
    differs = None
    if size != known["bytes"]:
        differs = f"bytes: {size} in the file, {known['bytes']} in the manifest"
    elif not is_unwritten(file, known.get("mark")) and (sha := sha256_of(file)) != known["sha256"]:
        differs = f"sha256: {sha[:12]}... in the file, {known['sha256'][:12]}... in the manifest"
    if differs:
        mend = rebuild(folder, manifest, file)
        if _begins_with(file, known["bytes"], known["sha256"]):
            more = ["research", "index", "add", str(folder), "--corpus", str(file)]
            mend = f"it only grew, so add what is new: {shlex.join(more)}; or {mend}"
        raise IndexFolderError(
            f"corpus {file} and index {folder} do not belong together ({differs}); {mend}"
        )


def check_prefix(folder: Path, manifest: dict[str, Any], file: Path) -> None:
    """Refuse a corpus that does not begin with that of an index.

    Raises:
        IndexFolderError: it is shorter, or another.
    """
    known = manifest["corpus"]
    if not _begins_with(file, known["bytes"], known["sha256"]):
        raise IndexFolderError(
            f"corpus {file} must begin with the {known['count']} passages of index {folder}, byte "
            f"for byte ({known['bytes']} bytes, sha256 {known['sha256'][:12]}...), and does not; "
            f"put new passages behind the old ones, or {rebuild(folder, manifest, file)}"
        )


def _begins_with(file: Path, size: int, sha256: str) -> bool:
    """Return whether the first ``size`` bytes of a larger file have this SHA-256."""
    if file.stat().st_size <= size:
        return False
    digest, left = hashlib.sha256(), size
    with file.open("rb") as content:
        while left and (block := content.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest() == sha256


def check_weights(
    folder: Path, known: dict[str, Any], encoder: Encoder, remedy: str = "build it again"
) -> None:
    """Refuse an encoder whose weights are not those that the vectors were made with.

    Args:
        folder: the index or shard.
        known: what its manifest says of the encoder.
        encoder: the one that is there now.
        remedy: what to do about it.

    Raises:
        IndexFolderError: they differ.
    """
    wanted, found = known.get("weights"), encoder.fingerprint() if "weights" in known else None
    if found != wanted:
        raise IndexFolderError(
            f"encoder {encoder.name} and index {folder} do not belong together (weights: "
            f"{str(found)[:12]}... in the model's folder, {str(wanted)[:12]}... in the manifest); "
            f"put back the model that it was made with, or {remedy}"
        )


def rebuild(folder: Path, manifest: dict[str, Any], file: Path) -> str:
    """Return the advice to make an index again, with the command and all its options."""
    index = manifest.get("index") or {}
    encoder = manifest.get("encoder")
    if "file" in index:  # an adopted index: its vectors are somebody else's
        words = ["adopt", "--faiss", folder / index["file"], "--corpus", file, "--out", folder]
    else:
        words = ["build", "--corpus", file, "--out", folder, "--kind", manifest["kind"]]
        words += ["--type", index["type"], "--metric", index["metric"]] if index else []
    words += ["--encoder", encoder["name"]] if encoder else []
    settings = manifest.get("bm25", {}) | (encoder["settings"] if encoder else {})
    settings |= {name: index.get(name) for name in ("nprobe", "efSearch")}
    command = ["research", "index", *map(str, words), *_flags(settings), "--overwrite"]
    return f"{words[0]} it again: {shlex.join(command)}"


def _flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as options of the command line; those that are None are left out."""
    words = []
    for name, value in settings.items():
        flag = re.sub(r"(?<=[a-z])(?=[A-Z])|_", "-", name).lower()
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an index, and over that only when told.

    Raises:
        FileExistsError: something else is there, or an index and ``overwrite`` is not given.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not any((target / name).is_file() for name in (MANIFEST, SHARD)):
        raise FileExistsError(f"out must be a new folder or an index, got {target}")
    if not overwrite:
        raise FileExistsError(
            f"out must not exist, got the index {target}; pass overwrite (--overwrite)"
        )


def near_path(file: Path, target: Path) -> str:
    """Return a file's path, relative to an index folder if it lies beside or inside it."""
    near = file.is_relative_to(target.parent)
    return Path(os.path.relpath(file, target)).as_posix() if near else str(file)


def corpus_manifest(
    file: Path, target: Path, count: int, sha256: str, left_out: int = 0
) -> dict[str, Any]:
    """Describe the corpus."""
    stat = file.stat()
    return {
        "path": near_path(file, target),
        "sha256": sha256,
        "count": count,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,  # read by 0.1.0 alone, which knows no mark
        "mark": file_mark(file),
    } | ({"left_out": left_out} if left_out else {})


def versions(*more: str) -> dict[str, str]:
    """Return the versions of the packages that make an index, and of others."""
    names = ("research-rl", "numpy", "faiss-cpu", "faiss-gpu", "transformers", "bm25s", *more)
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

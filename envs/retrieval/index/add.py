"""Passages added to an index: only the new ones are encoded.

``research index add indexes/wiki --corpus wiki-and-20-more.jsonl`` makes of the index of the first
passages that of all of them.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.corpus import Corpus
from research_rl.envs.retrieval.encoders import NEWEST_RULE, SKETCH, Encoder, make_encoder
from research_rl.envs.retrieval.index.build import ReportFn, build_index
from research_rl.envs.retrieval.index.build_steps import (
    RAW,
    Advance,
    SourceFile,
    bar,
    check_unchanged,
    contents_of,
    encode,
    move_into_place,
    open_corpus,
    put_back_replaced,
    workplace,
)
from research_rl.envs.retrieval.index.estimate import check_plan, check_words, estimate_words
from research_rl.envs.retrieval.index.manifest import (
    BM25,
    INDEX_FORMAT,
    MANIFEST,
    MILVUS,
    OFFSETS,
    SAMPLE,
    VECTORS,
    IndexFolderError,
    check_prefix,
    check_weights,
    corpus_manifest,
    corpus_of,
    read_manifest,
    versions,
    write_json,
)
from research_rl.envs.retrieval.index.recall import OWN, Sample, judge, own_sample, with_more
from research_rl.envs.retrieval.index.storage import Storage
from research_rl.envs.retrieval.search import fit_bm25, save_bm25
from research_rl.envs.retrieval.vectors import (
    VectorFile,
    VectorParts,
    codes_behind_header,
    encode_codes,
    import_faiss,
    read_vectors,
    search_width_of,
)

_STALE = 2
"""An index whose lists or codes were learned from fewer than one in so many passages is told of."""


def extend_index(
    folder: str | Path,
    corpus: str | Path | None = None,
    encoder: Encoder | None = None,
    memory: int | str | None = None,
    progress: bool = False,
    report: ReportFn | None = None,
    strict: bool = True,
) -> Path:
    """Add passages to an index folder and return it.

    The new corpus begins with the old one, byte for byte. Vectors of a model are kept, and only new
    passages are encoded: the index is that of one build for flat and scalar-quantised types with
    the same codes, and for others with the lists and codes that the first passages gave. BM25 and
    the offline encoder count again, since each new passage changes the weight of its words in all
    of them: the index is that of one build.

    The work is done beside the folder, which is replaced at the end. A command that was cut short,
    even by ``kill -9``, leaves the index as it was, and goes on when it is started again.

    Args:
        folder: what ``build_index``, ``merge_shards`` or ``adopt_index`` made.
        corpus: JSONL file of the old passages and the new ones behind them; None is the file of the
            index, to which they were appended.
        encoder: only for an index made with an Encoder that ``make_encoder`` does not know.
        memory: bytes the process may take, or text such as "2GB".
        progress: show a progress bar.
        report: called with what will be done, and with the recall after it.
        strict: refuse bad lines; otherwise they are left out with a warning.

    Raises:
        CorpusError: the corpus cannot be read.
        IndexFolderError: there is no index, the old corpus is not the beginning of the new one, or
            the index cannot grow.
        FileExistsError: another process is building there.
        ValueError: more memory is needed than may be taken.
    """
    target = Path(folder).resolve()
    put_back_replaced(target)
    manifest = read_manifest(target)
    if manifest["kind"] == MILVUS:
        raise IndexFolderError(f"index {folder} is in Milvus, where add does not work; build again")
    path = corpus_of(target, manifest, corpus)
    known = manifest["corpus"]
    source = SourceFile.of(path)
    tell = report or (lambda _: None)
    if source.sha256 == known["sha256"]:
        tell(f"{folder} holds all {known['count']} passages of {path}: nothing to add")
        return target
    check_prefix(target, manifest, path)
    if manifest.get("index", {}).get("id_map"):
        raise IndexFolderError(
            f"index {folder} must keep its vectors in the order of the corpus to grow, and was "
            "adopted with ids of its own; add the vectors where it was made, and adopt it again"
        )
    copied = (target / known["path"]).resolve().is_relative_to(target)
    grow = _Growth(target, manifest, source, copied, Storage(memory=memory), progress, tell, strict)
    if manifest["kind"] == "bm25" or manifest["encoder"]["name"] == SKETCH:
        return grow.build_again()
    return grow.run(encoder)


@dataclass(frozen=True)
class _Growth:
    target: Path
    manifest: dict[str, Any]
    source: SourceFile
    copied: bool
    storage: Storage
    progress: bool
    report: ReportFn
    strict: bool

    def build_again(self) -> Path:
        """Count all passages again: BM25, and the offline encoder."""
        self.report("words are counted again, for each passage changes their weight in all others")
        manifest = self.manifest
        index, options = manifest.get("index") or {}, dict(manifest.get("bm25", {}))
        storage, name = Storage(memory=self.storage.memory), SKETCH
        if index:
            widths: dict[str, Any] = {"nprobe": index.get("nprobe")}
            widths["ef_search"] = index.get("efSearch")
            storage = replace(storage, index_type=index["type"], metric=index["metric"], **widths)
            options |= manifest["encoder"]["settings"]
        how = (self.copied, True, self.progress, storage, None, self.report, self.strict)
        args = (manifest["kind"], name, storage.metric, *how)
        folder = build_index(self.source.path, self.target, *args, **options)
        return self._keep_fusion(folder)

    def _keep_fusion(self, folder: Path) -> Path:
        """Let tuned weights of a hybrid stay."""
        if "fusion" in self.manifest:
            made = read_manifest(folder) | {"fusion": self.manifest["fusion"]}
            write_json(folder / MANIFEST, made)
        return folder

    def run(self, encoder: Encoder | None) -> Path:
        """Encode the new passages and put them behind the old ones."""
        known, index = self.manifest["encoder"], self.manifest["index"]
        made = encoder or make_encoder(known["name"], **known["settings"])
        made.load(self.target)
        check_weights(self.target, known, made)
        old = self.manifest["corpus"]["count"]
        before = {key: self.manifest[key] for key in ("index", "encoder")}
        before |= {"corpus": self.manifest["corpus"]["sha256"]}
        plan = {"add": before, "corpus": self.source.identity}
        with workplace(self.target, plan) as folder:
            if (folder / MANIFEST).is_file():  # killed before it got its name
                move_into_place(folder, self.target)
                return self.target
            passages, left_out = open_corpus(self.source, folder, self.progress, self.strict)
            self._check_rows(passages, old)
            self._estimate(len(passages), old, made.dim)
            file = VectorFile(folder / RAW, made.dim)
            rows = range(old, len(passages))
            with bar("encoding", len(rows), " passages", self.progress) as advance:
                encode(passages, rows, made, file, advance)
            made.save(folder)
            with bar("indexing", len(passages), " passages", self.progress) as advance:
                vectors = self.target / index.get("file", VECTORS)
                append_vectors(vectors, VectorParts([file]), folder / VECTORS, advance)
            kept = self._kept(folder, passages, made, file)
            if self.manifest["kind"] == "hybrid":
                kept |= self._count(folder, passages)
            self._finish(folder, len(passages), left_out, kept)
            move_into_place(folder, self.target)
        return self.target

    def _check_rows(self, passages: Corpus, old: int) -> None:
        """Refuse a corpus whose first passages lie elsewhere than those of the index."""
        offsets = np.load(self.target / OFFSETS, mmap_mode="r")
        if len(passages) < old or not (passages.offsets[:old, 0] == offsets[:, 0]).all():
            raise IndexFolderError(
                f"the last passage of index {self.target} must end its line in {self.source.path}; "
                "put new passages on lines of their own"
            )

    def _estimate(self, count: int, old: int, dim: int) -> None:
        index = self.manifest["index"]
        factory = index["type"] if "file" not in index else "Flat"  # an adopted one is as large
        storage = replace(self.storage, index_type=factory, metric=index["metric"])
        plan = storage.estimate(count - old, count, dim)
        self.report(f"{count - old} passages are encoded and put behind {old}; all in all {plan}")
        check_plan(replace(plan, least=0), storage.limit)

    def _kept(
        self, folder: Path, passages: Corpus, encoder: Encoder, file: VectorFile
    ) -> dict[str, Any]:
        """Return what the manifest says of vectors and encoder, after the recall is measured."""
        index = {k: v for k, v in self.manifest["index"].items() if k != "file"}
        kept = {"encoder": self.manifest["encoder"], "index": index}
        old = self.manifest["corpus"]["count"]
        opened = read_vectors(folder / VECTORS, mmap=True)
        search_width = search_width_of(opened)
        if search_width == "nprobe":
            index["learned_from"] = learned = index.get("learned_from", old)
            if learned * _STALE <= len(passages):
                self.report(
                    f"WARNING: its lists were found for {learned} of {len(passages)} passages; "
                    "build it again if its recall has fallen"
                )
        sample = self._sample(opened, passages, encoder, file)
        if sample is None:
            return kept
        width = index.get(search_width) if search_width else None
        found, recall = judge(folder, sample, width)
        kept["recall"] = recall | (
            {"against": OWN} if "against" in self.manifest.get("recall", {}) else {}
        )
        said = "".join(f" with {name} {value}" for name, value in found.items())
        self.report(
            f"recall@{recall['k']} {recall['recall']:.3f}{said} for {recall['queries']} queries "
            f"sampled from the first passages"
        )
        index |= found
        return kept

    def _sample(
        self, opened: Any, passages: Corpus, encoder: Encoder, file: VectorFile
    ) -> Sample | None:
        """Return the sampled queries with what exact search finds now, None if there are none."""
        if "against" in self.manifest.get("recall", {}):
            return own_sample(opened, passages, encoder)
        if not (self.target / SAMPLE).is_file():
            return None
        known = Sample.load(self.target / SAMPLE)
        old, metric = self.manifest["corpus"]["count"], self.manifest["index"]["metric"]

        def encoded(rows: list[int]) -> Any:
            return encoder.encode_passages([passages[row].contents for row in rows])

        return with_more(known, encoded, VectorParts([file]), old, metric)

    def _count(self, folder: Path, passages: Corpus) -> dict[str, Any]:
        settings = self.manifest["bm25"]
        words = estimate_words(passages, settings)
        self.report(str(words))
        check_words(words, self.storage.limit)
        with bar("counting", len(passages), " passages", self.progress) as advance:
            model = fit_bm25(contents_of(passages, advance), **settings)
        save_bm25(model, folder / BM25)
        tuned = {name: self.manifest[name] for name in ("fusion",) if name in self.manifest}
        return {"bm25": settings, "words": NEWEST_RULE} | tuned

    def _finish(self, folder: Path, count: int, left_out: int, kept: dict[str, Any]) -> None:
        where, target = self.source.path, self.target
        if self.copied:
            where, target = folder / "corpus.jsonl", folder
            shutil.copyfile(self.source.path, where)
        check_unchanged(self.source)
        (folder / RAW).unlink(missing_ok=True)
        corpus = corpus_manifest(where, target, count, self.source.sha256, left_out)
        manifest = {"format": INDEX_FORMAT, "kind": self.manifest["kind"], "corpus": corpus}
        write_json(folder / MANIFEST, manifest | kept | {"versions": versions()})


def append_vectors(old: Path, new: VectorParts, out: Path, advance: Advance) -> None:
    """Write the FAISS file of the vectors of a former one and of new ones behind them.

    A type whose file is a header and codes is copied with its header changed; another one is read
    into memory.
    """
    faiss = import_faiss()
    index = read_vectors(old, mmap=True)
    begins = codes_behind_header(old, index)
    if begins is None:
        index = faiss.read_index(str(old))
        for _, block in new.blocks():
            index.add(block)
            advance(len(block))
        faiss.write_index(index, str(out))
        return
    header, unit = begins
    total = index.ntotal + len(new)
    with old.open("rb") as source, out.open("wb") as file:
        source.seek(len(header))
        file.write(header[:8] + struct.pack("<q", total) + header[16:-8])
        file.write(struct.pack("<q", unit * total))
        shutil.copyfileobj(source, file, 1 << 24)
        advance(int(index.ntotal))
        for _, block in new.blocks():
            file.write(encode_codes(index, block).data)
            advance(len(block))

"""Corpora as people have them become JSONL once, read by the readers of question files."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index, extend_index, load_retriever
from research_rl.envs.retrieval.corpus import Corpus, CorpusError, local_corpus
from research_rl.envs.retrieval.index import read_manifest

ROWS = [
    {"id": "1", "text": 'the "city", of Oslo', "title": "Oslo"},
    {"id": "2", "text": "[1]", "title": "Paris"},
    {"id": "3", "text": "", "title": "Lima"},
]
WANTED = [("1", '"Oslo"\nthe "city", of Oslo'), ("2", '"Paris"\n[1]'), ("3", '"Lima"\n')]
Write = Callable[[Path], Path]


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def table(name: str, between: str) -> Write:
    """Write a table as DPR's psgs_w100.tsv is: a line of names, and quotes where needed."""

    def write(folder: Path) -> Path:
        lines = [("id", "text", "title"), *((r["id"], quoted(r["text"]), r["title"]) for r in ROWS)]
        file = folder / name
        file.write_text("".join(between.join(line) + "\n" for line in lines), "utf-8")
        return file

    return write


def lines_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zipped(folder: Path) -> Path:
    file = folder / "c.jsonl.gz"
    file.write_bytes(gzip.compress(lines_of(ROWS)))
    return file


def zipped_table(folder: Path) -> Path:
    plain = table("psgs.tsv", "\t")(folder)
    file = folder / "psgs.tsv.gz"
    file.write_bytes(gzip.compress(plain.read_bytes()))
    return file


def zstandard(folder: Path) -> Path:
    compress = pytest.importorskip("zstandard").compress
    file = folder / "c.jsonl.zst"
    file.write_bytes(compress(lines_of(ROWS)))
    return file


def array(folder: Path) -> Path:
    file = folder / "c.json"
    file.write_text(json.dumps(ROWS, indent=1))
    return file


def parquet(folder: Path) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as format_

    format_.write_table(arrow.Table.from_pylist(ROWS), folder / "c.parquet")
    return folder / "c.parquet"


def saved(folder: Path) -> Path:
    data = pytest.importorskip("datasets").Dataset.from_list(ROWS)
    data.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def saved_splits(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    data.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def beir(folder: Path) -> Path:
    rows = [{"_id": r["id"], "title": r["title"], "text": r["text"], "metadata": {}} for r in ROWS]
    (folder / "beir").mkdir()
    (folder / "beir" / "corpus.jsonl").write_bytes(lines_of(rows))
    return folder / "beir"


@pytest.mark.parametrize(
    "write",
    [
        *(table("psgs_w100.tsv", "\t"), table("c.csv", ","), zipped, zipped_table, zstandard),
        *(array, parquet, saved, saved_splits, beir),
    ],
)
def test_a_corpus_of_any_layout_is_read(tmp_path: Path, write: Write) -> None:
    corpus = local_corpus(write(tmp_path), tmp_path / "i")
    assert [(p.id, p.contents) for p in Corpus(corpus)] == WANTED


def test_lines_without_names_are_those_of_ms_marco(tmp_path: Path) -> None:
    file = tmp_path / "collection.tsv"
    file.write_text('0\tHe said "yes, no" quote\n1\t"Unclosed\n')
    found = Corpus(local_corpus(file, tmp_path / "i"))
    assert [(p.id, p.contents) for p in found] == [
        ("0", 'He said "yes, no" quote'),
        ("1", '"Unclosed'),
    ]
    file.write_text("a\tb\tc\td\n")
    with pytest.raises(CorpusError, match=r"collection.tsv:1: must have a line of names"):
        local_corpus(file, tmp_path / "j")


def test_it_is_written_once_and_not_taken_for_another(tmp_path: Path) -> None:
    file = zipped(tmp_path)
    written = local_corpus(file, tmp_path / "i")
    assert written == tmp_path / "i.corpus.jsonl"
    before = written.stat().st_ino
    assert local_corpus(file, tmp_path / "i").stat().st_ino == before
    file.write_bytes(gzip.compress(lines_of(ROWS[:1])))
    with pytest.raises(CorpusError, match=r"must hold .*c\.jsonl\.gz, got .*choose another --out"):
        local_corpus(file, tmp_path / "i")


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("Oslo is a city.")
    with pytest.raises(CorpusError, match=r"must be JSONL, a JSON array, .* begins with b'Oslo is"):
        local_corpus(tmp_path / "c.txt", tmp_path / "i")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"empty: must be JSONL.*a folder of something else"):
        local_corpus(tmp_path / "empty", tmp_path / "i")
    cut = zipped(tmp_path)
    cut.write_bytes(cut.read_bytes()[:-12])
    with pytest.raises(CorpusError, match=r"c\.jsonl\.gz:\d+: is compressed and damaged or cut"):
        local_corpus(cut, tmp_path / "i")
    many = gzip.compress(b"".join(lines_of([{"id": i, "text": str(i) * 99}]) for i in range(9999)))
    cut.write_bytes(many[: len(many) // 2])
    with pytest.raises(CorpusError, match=r"c\.jsonl\.gz:\d\d+: is compressed and damaged or cut"):
        local_corpus(cut, tmp_path / "i")
    assert not list(tmp_path.glob("*i.corpus*"))


@pytest.mark.parametrize(
    ("lacking", "name", "start", "advice"),
    [
        ("pyarrow.parquet", "c.parquet", b"PAR1", r"needs pyarrow; do pip install -e '\.\[data\]'"),
        ("zstandard", "c.jsonl.zst", b"\x28\xb5\x2f\xfd", "needs zstandard; do pip install zst"),
    ],
)
def test_a_package_is_asked_for_only_with_its_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
    name: str,
    start: bytes,
    advice: str,
) -> None:
    monkeypatch.setitem(sys.modules, lacking, None)
    (tmp_path / name).write_bytes(start)
    with pytest.raises(ImportError, match=advice):
        local_corpus(tmp_path / name, tmp_path / "i")
    assert len(Corpus(local_corpus(zipped(tmp_path), tmp_path / "i"))) == 3


def test_a_saved_data_set_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    with pytest.raises(ImportError, match=r"saved to disk .* needs datasets; do pip install -e"):
        local_corpus(tmp_path / "saved", tmp_path / "i")
    splits = {"validation": ROWS}
    loaded = SimpleNamespace(load_from_disk=lambda _: splits)
    monkeypatch.setitem(sys.modules, "datasets", loaded)
    with pytest.raises(CorpusError, match=r"must be told which split: .*saved#validation'; it has"):
        local_corpus(tmp_path / "saved", tmp_path / "i")
    splits["train"] = ROWS
    found = Corpus(local_corpus(tmp_path / "saved", tmp_path / "i"))
    assert [(p.id, p.contents) for p in found] == WANTED


def test_questions_are_read_from_compressed_files_too(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl.gz"
    rows = [{"id": "1", "question": "Who?", "golden_answers": ["Ann"]}]
    file.write_bytes(gzip.compress(lines_of(rows)))
    assert [(q.text, q.answers) for q in read_questions(str(file))] == [("Who?", ("Ann",))]


def test_questions_are_read_from_zstandard_and_saved_data_sets_too(tmp_path: Path) -> None:
    compress = pytest.importorskip("zstandard").compress
    datasets = pytest.importorskip("datasets")
    rows = [{"id": "1", "question": "Who?", "golden_answers": ["Ann"]}]
    (tmp_path / "q.jsonl.zst").write_bytes(compress(lines_of(rows)))
    splits = datasets.DatasetDict({"dev": datasets.Dataset.from_list(rows)})
    splits.save_to_disk(str(tmp_path / "saved"))
    for source in (f"{tmp_path}/q.jsonl.zst", f"{tmp_path}/saved#dev"):
        assert [(q.text, q.answers) for q in read_questions(source)] == [("Who?", ("Ann",))]
    cut = (tmp_path / "q.jsonl.zst").read_bytes()[:-6]
    (tmp_path / "q.jsonl.zst").write_bytes(cut)
    with pytest.raises(ValueError, match=r"q\.jsonl\.zst"):
        read_questions(tmp_path / "q.jsonl.zst")


def test_bad_rows_are_counted_and_left_out_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "c.jsonl.gz"
    good = lines_of([{"id": str(i), "text": f"t{i}"} for i in range(6)])
    file.write_bytes(gzip.compress(good + b'{"id": "7"}\n[]\n{broken\n\xff\n'))
    found = Corpus(local_corpus(file, tmp_path / "i"))
    assert [p.id for p in found] == list("012345")
    assert "4 rows are left out: line 7: must have a column contents or text" in caplog.text
    assert "; line 8: must be an object, got list; line 9: must be a JSON" in caplog.text
    assert "; and 1 more lines" in caplog.text
    for out in ("j", "i"):  # also where a lenient call has written it before
        with pytest.raises(CorpusError, match=r"7: must have a column .*; and 1 more lines"):
            local_corpus(file, tmp_path / out, strict=True)
    caplog.clear()
    assert len(Corpus(local_corpus(file, tmp_path / "i"))) == 6
    assert "was written before, 4 rows left out" in caplog.text
    file.write_bytes(gzip.compress(good[:20] + b"\n[]\n[]\n"))
    with pytest.raises(CorpusError, match="must be an object, got list"):
        local_corpus(file, tmp_path / "k")
    assert not list(tmp_path.glob("*[jk].corpus*"))


def test_passages_of_a_jsonl_file_with_bad_lines_keep_their_places(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("faiss")
    file = tmp_path / "c.jsonl"
    rows = [{"id": i, "text": t} for i, t in enumerate(("oslo", "lima", "cairo", "rome"))]
    lines = lines_of(rows).splitlines(keepends=True)
    file.write_bytes(lines[0] + b"[]\n" + lines[1] + lines[0] + lines[2] + lines[3])
    folder = build_index(file, tmp_path / "i", dim=64, strict=False)
    assert "2 rows are left out: line 2: must be a JSON object, got list" in caplog.text
    assert "line 4: id '0' is already used in line 1" in caplog.text
    manifest = read_manifest(folder)
    assert (manifest["corpus"]["count"], manifest["corpus"]["left_out"]) == (4, 2)
    assert [row[0].id for row in load_retriever(folder).search(["lima", "rome"], 1)] == ["1", "3"]
    with pytest.raises(CorpusError, match=r"c\.jsonl:2: .*; line 4: id '0'"):
        build_index(file, tmp_path / "j", dim=64)
    with file.open("ab") as more:
        more.write(b'{"id": 9, "text": "quito"}\n')
    extend_index(folder, strict=False)
    assert read_manifest(folder)["corpus"]["left_out"] == 2
    assert load_retriever(folder).search(["quito"], 1)[0][0].id == "9"

"""A folder of documents becomes a corpus: nothing is lost in silence, and places are true."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from doubles import papers
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs.documents import CorpusReport, NearTexts, build_documents, kind_of
from research_rl.envs.documents import build as build_module
from research_rl.envs.documents.cache import Readings
from research_rl.envs.documents.command import main
from research_rl.envs.documents.kinds import find_files
from research_rl.envs.documents.reading import (
    Reading,
    UnreadableError,
    decode,
    plain_title,
    read_plain,
)
from research_rl.envs.documents.rich import read_rich
from research_rl.envs.documents.split import split_reading
from research_rl.envs.documents.worker import Worker
from research_rl.envs.retrieval import CorpusError, build_index, load_retriever
from research_rl.envs.retrieval.cli import main as index_command


def rows_of(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]


def titles_of(corpus: Path) -> list[str]:
    return [row["contents"].partition("\n")[0].strip('"') for row in rows_of(corpus)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return papers.write_plain(tmp_path / "papers")


def built(folder: Path, **options: Any) -> tuple[Path, CorpusReport]:
    corpus = folder.with_name("corpus.jsonl")
    return corpus, build_documents(folder, corpus, **options)


def test_every_file_is_read_passed_over_or_named(folder: Path) -> None:
    _, report = built(folder)
    assert dict(report.files) == {"md": 4, "txt": 3, "rst": 1, "code": 1}
    assert dict(report.passed) == {
        "hidden folders and caches": 2,
        "hidden files": 1,
        "links": 1,
        ".jpg ending, not read": 1,
        ".bin ending, not read": 1,
    }
    unreadable = dict(report.unreadable)
    assert set(unreadable) == {"broken.txt", "bytes.txt", "blank.md"}
    assert "binary" in unreadable["broken.txt"]
    assert "0x81" in unreadable["bytes.txt"]
    assert report.notes == [("legacy.txt", "not UTF-8, read as Windows-1252")]
    assert report.empty == ["heads.md"]


def test_titles_are_headings_and_places_are_those_in_the_file(folder: Path) -> None:
    corpus, _ = built(folder)
    assert {"Kestrel guide", "Kestrel guide > Install", "Kestrel guide > Upgrade"} <= set(
        titles_of(corpus)
    )
    assert {"Manual", "Manual > Journal", "client.py > connect", "README"} <= set(titles_of(corpus))
    for row in rows_of(corpus):
        text = decode((folder / row["source"]).read_bytes())[0]
        body = row["contents"].partition("\n")[2]
        assert text[row["start"] : row["end"]] == body
        assert body.strip()


def test_copies_are_counted_and_the_first_one_stays(folder: Path) -> None:
    corpus, report = built(folder)
    ids = [row["id"] for row in rows_of(corpus)]
    assert len(set(ids)) == len(ids)
    assert ("guide.md#1", "copy/guide-old.md#1") in report.same
    near = {(one, other) for one, other, _ in report.near}
    assert ("guide.md#2", "copy/guide-old.md#2") in near
    assert "guide.md#2" in ids
    _, report = built(folder, drop_near=True)
    assert "guide.md#2" not in [row["id"] for row in rows_of(corpus)]
    assert {(one, other) for one, other, _ in report.near} == near


def test_equal_folders_give_equal_bytes_and_only_changes_are_read(folder: Path) -> None:
    corpus, report = built(folder)
    first = corpus.read_bytes()
    assert report.again == 11  # those that cannot be read among them
    corpus.unlink()
    _, report = built(folder)
    assert corpus.read_bytes() == first
    assert report.again == 2  # and the empty one is not even tried
    (folder / "manual.rst").write_text("New\n===\n\nText.\n")
    _, report = built(folder)
    assert report.again == 3
    assert "New" in titles_of(corpus)
    kept = corpus.with_name("corpus.jsonl.readings").read_bytes()
    assert b"nine days" not in kept


def test_a_killed_build_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, _ = built(folder)
    wanted = corpus.read_bytes()
    for file in (corpus, corpus.with_name("corpus.jsonl.readings")):
        file.unlink()
    count = 0

    def killed(*args: Any) -> Reading:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        return read_plain(*args)

    monkeypatch.setattr(build_module, "read_plain", killed)
    with pytest.raises(KeyboardInterrupt):
        built(folder)
    assert not corpus.exists()
    readings = corpus.with_name("corpus.jsonl.readings")
    with readings.open("ab") as file:
        file.write(b'{"reader": 1, "sha2')  # a line that was being written
    monkeypatch.undo()
    _, report = built(folder)
    assert corpus.read_bytes() == wanted
    assert report.again == 9  # two of the four that were tried cannot be read
    with Readings(readings) as kept:
        assert all(line.startswith(b"{") for line in readings.read_bytes().splitlines())
        assert kept


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotADirectoryError, match="no folder"):
        build_documents(tmp_path / "none", tmp_path / "c.jsonl")
    (tmp_path / "f").mkdir()
    with pytest.raises(ValueError, match="must hold documents with text, got none"):
        build_documents(tmp_path / "f", tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()
    (tmp_path / "f" / "a.pdf").write_bytes(b"x")
    monkeypatch.setattr(build_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"1 pdf files need pypdf.*--skip pdf"):
        build_documents(tmp_path / "f", tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match="at most half of it, got 100 and 80"):
        build_documents(tmp_path / "f", tmp_path / "c.jsonl", size=100, overlap=80)


def test_a_large_file_is_named(folder: Path) -> None:
    (folder / "large.txt").write_text("word " * 50_000)
    _, report = built(folder, largest=0.2)
    assert ("large.txt", "must have at most 0.2 MB, got 0; see --largest") in report.unreadable


def test_the_command_tells_and_the_index_keeps_where_a_passage_stands(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = folder.with_name("corpus.jsonl")
    main(["build", str(folder), "--out", str(corpus), "--quiet"])
    said = capsys.readouterr().out
    assert "cannot be read: 3 files" in said
    assert "research index build --corpus" in said
    report = json.loads(corpus.with_name("corpus.report.json").read_text())
    assert report["passages"] == len(rows_of(corpus))
    for kind in ("dense", "bm25", "hybrid"):
        index = folder.with_name(kind)
        build_index(corpus, index, kind=kind)
        best = load_retriever(str(index)).search(["journal kept for nine days"], 2)[0][0]
        assert (best.id, best.source) == ("manual.rst#2", "manual.rst#char=60,105")
    index_command(["search", str(folder.with_name("dense")), "nine days", "--top-k", "1"])
    assert "manual.rst#char=60,105" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--out must be a file NAME\.jsonl"):
        main(["build", str(folder), "--out", "corpus"])


@pytest.mark.parametrize("name", ["", "guide.md", "broken.txt"])
def test_an_index_of_documents_says_which_command_makes_a_corpus(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        index_command(["build", "--corpus", str(folder / name), "--out", str(folder / "index")])
    assert "research corpus build" in capsys.readouterr().err
    with pytest.raises(CorpusError, match="there is no such corpus file"):
        build_index(folder / "none.jsonl", folder / "index")


def test_formats_that_need_a_package(tmp_path: Path) -> None:
    for module in ("bs4", "docx", "pypdf"):
        pytest.importorskip(module)
    folder = papers.write_rich(tmp_path / "papers")
    corpus, report = built(folder, seconds=20)
    assert dict(report.files) == {"html": 2, "pdf": 1, "docx": 1} or dict(report.files) == {
        **{"html": 1, "pdf": 1, "docx": 1}  # a html.parser that gives up where it is too deep
    }
    unreadable = dict(report.unreadable)
    assert {"broken.pdf", "empty.pdf", "bomb.docx", "torn.docx"} <= set(unreadable)
    assert "scanned" in unreadable["empty.pdf"]
    assert "must unpack to at most 200 MB, got 300 MB" in unreadable["bomb.docx"]
    rows = {row["id"]: row for row in rows_of(corpus)}
    contents = "\n".join(row["contents"] for row in rows.values())
    assert "hidden" not in contents
    assert "Home | Team" not in contents
    assert '"The team"\nThe founder of Kestrel is Ingrid Solberg.' in contents
    assert "Bergen | 12" in contents
    assert '"Minutes > Decisions"\nThe next release' in contents
    assert "Chair | Ingrid Solberg" in contents
    prices = next(row for row in rows.values() if "9 crowns" in row["contents"])
    assert prices["page"] == 2
    assert prices["contents"].startswith('"fees > Prices"\n')
    build_index(corpus, tmp_path / "index")
    best = load_retriever(str(tmp_path / "index")).search(["9 crowns"], 1)[0][0]
    assert best.source == "fees.pdf#page=2"
    assert built(folder, skip=frozenset({"pdf"}))[1].passed["pdf, as --skip says"] == 3


@pytest.mark.parametrize(
    ("declared", "written", "text", "note"),
    [
        ("gb2312", "gb18030", "朱镕基是总理", ""),
        ("shift_jis", "cp932", "①髙島屋", ""),
        ("EUC-KR", "cp949", "똠방각하", ""),
        ("iso-8859-1", "cp1252", "a “quote”", ""),
        ("windows-1251", "cp1251", "Москва", ""),
        ("utf-16", "utf-8", "Zürich", ""),
        ("nonsense", "utf-8", "Zürich", "not nonsense as it says, read as UTF-8"),
        ("", "cp1252", "Zürich", "not UTF-8, read as Windows-1252"),
    ],
)
def test_a_page_is_read_in_the_encoding_that_browsers_take(
    declared: str, written: str, text: str, note: str
) -> None:
    pytest.importorskip("bs4")
    said = f'<meta charset="{declared}">' if declared else ""
    page = f"<html><head>{said}<title>T</title></head><body><p>{text}</p></body></html>"
    reading = read_rich("html", page.encode(written))
    assert reading.text.strip() == text
    assert (reading.title, reading.note) == ("T", note)


def test_a_page_may_leave_out_the_end_of_its_head() -> None:
    pytest.importorskip("bs4")
    page = b"<!doctype html><html><head><title>T</title><style>p {}</style><body><p>words</p>"
    assert read_rich("html", page).text.strip() == "words"


def test_a_reader_that_hangs_or_dies_costs_one_file(tmp_path: Path) -> None:
    pytest.importorskip("bs4")
    page = tmp_path / "a.html"
    page.write_text("<p>text</p>")
    with Worker(seconds=0.001) as hasty, pytest.raises(UnreadableError, match=r"within 0\.001 s"):
        hasty.read(page, "html")
    with Worker() as worker:
        assert worker.read(page, "html")[0].text == "text"
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(UnreadableError, match="ended the process"):
            worker.read(page, "html")
        assert worker.read(page, "html")[0].text == "text"
        with pytest.raises(UnreadableError, match="FileNotFoundError"):
            worker.read(tmp_path / "none.html", "html")


@given(st.binary(max_size=300), st.sampled_from(["md", "rst", "code", "txt"]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_reading_or_unreadable(data: bytes, kind: str) -> None:
    try:
        reading = read_plain(kind, data)
    except UnreadableError:
        return
    assert Reading.from_row(json.loads(json.dumps(reading.to_row()))) == reading
    starts = [mark.start for mark in reading.marks]
    assert starts == sorted(starts)
    list(split_reading(reading, "name", 60, 10))


_PROSE = st.text(st.sampled_from("ab .\n#-=。`日"), max_size=600)


@given(_PROSE, st.integers(50, 200), st.integers(0, 25), st.sampled_from(["md", "rst", "txt"]))
@settings(max_examples=200, deadline=None)
def test_passages_hold_all_of_the_text_and_no_more_than_their_size(
    text: str, size: int, overlap: int, kind: str
) -> None:
    reading = read_plain(kind, text.encode())
    pieces = list(split_reading(reading, "name", size, overlap))
    covered = [False] * len(reading.text)
    for mark in reading.marks:
        covered[mark.start : mark.end] = [True] * (mark.end - mark.start)
    for before, piece in zip([None, *pieces], pieces, strict=False):
        assert 0 < piece.end - piece.start <= size
        assert before is None or (piece.start > before.start and piece.end > before.end)
        covered[piece.start : piece.end] = [True] * (piece.end - piece.start)
        assert not [m for m in reading.marks if piece.start < m.end and m.start < piece.end]
    left = [letter for letter, held in zip(reading.text, covered, strict=False) if not held]
    assert not "".join(left).strip()


def test_headings_of_markdown() -> None:
    text = (
        "---\ntitle: 'Front'\n---\n# A #\nx\n\n## [B](b.md) `c`\n~~~\n# no\n~~~\nD\n=\n- e\n---\n"
    )
    reading = read_plain("md", text.encode())
    assert [(m.level, m.title) for m in reading.marks] == [(1, "A"), (2, "B c"), (1, "D")]
    assert reading.title == "Front"
    assert plain_title("snake_case _and_ <b>more</b>") == "snake_case and more"


def test_long_lines_and_documents_take_no_longer_than_others() -> None:
    hostile = "# " + " " * 200_000 + "x\n" + "word " * 400_000 + "\n" * 200_000 + "end"
    reading = read_plain("md", hostile.encode())
    assert len(list(split_reading(reading, "name", 1000, 100))) > 2000


def test_kinds() -> None:
    assert kind_of("a/b.HTML") == "html"
    assert kind_of("LICENSE") == "txt"
    assert kind_of("Makefile") is None


def test_a_skipped_kind_is_counted(folder: Path) -> None:
    found = find_files(folder, frozenset({"md"}))
    assert found.passed["md, as --skip says"] == 5
    assert "guide.md" not in [path for path, _ in found.files]


def test_a_folder_that_may_not_be_listed_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "private").mkdir()
    (folder / "private" / "a.md").write_text("# A\n\nHidden words.\n")
    scandir = os.scandir

    def guarded(place: Any) -> Any:
        if Path(place) == folder / "private":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    report = build_documents(folder, tmp_path / "c.jsonl")
    assert ("private/", "Permission denied") in report.unreadable


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1), max_size=12))
@settings(max_examples=150, deadline=None)
def test_near_texts_are_what_all_pairs_would_find(texts: list[list[str]]) -> None:
    said = [" ".join(one) for one in texts]
    near = NearTexts(said)
    for row, one in enumerate(texts):
        shares = [len(set(one) & set(other)) / len(set(one) | set(other)) for other in texts[:row]]
        best = max(shares, default=0.0)
        place, share = near.nearest(said[row])
        if best >= 0.8:
            assert share == best
            assert place == shares.index(best)
        else:
            assert place is None
        near.add(said[row])

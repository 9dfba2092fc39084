"""A corpus gives every passage back at random access and refuses bad lines by number."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.retrieval.corpus.corpus import Corpus, CorpusError, parse_passage
from research_rl.envs.retrieval.encoders import BM25SketchEncoder
from research_rl.envs.retrieval.search import DenseRetriever
from research_rl.envs.system.files import sha256_of
from research_rl.envs.types import Passage

TEXT = st.text(min_size=1).filter(lambda s: s.strip())


@given(st.lists(TEXT, min_size=1, max_size=6), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_every_passage_comes_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], ascii_only: bool, newline: str
) -> None:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    rows = [
        json.dumps({"id": i, "contents": text}, ensure_ascii=ascii_only)
        for i, text in enumerate(texts)
    ]
    path.write_bytes((newline + newline.join(rows)).encode())
    corpus = Corpus(path)
    wanted = [Passage(str(i), text) for i, text in enumerate(texts)]
    assert list(corpus) == wanted
    assert [corpus[i] for i in range(-len(texts), 0)] == wanted
    assert corpus[1:] == wanted[1:]
    assert list(pickle.loads(pickle.dumps(corpus))) == wanted
    assert list(Corpus(path, corpus.offsets)) == wanted


def test_title_and_text_become_contents(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"_id": "a", "title": "Oslo", "text": "A city."}\n{"id": 2, "text": "b"}\n')
    assert [p.contents for p in Corpus(path)] == ['"Oslo"\nA city.', "b"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": 1, "contents": ', "JSON object"),
        (b'["id"]', "JSON object, got list"),
        (b'{"contents": "x"}', "id must be a string or an integer, got None"),
        (b'{"id": "b", "contents": 3}', "contents must be text, got 3"),
        (b'{"id": "b", "body": "x"}', "fields: ['body', 'id']"),
        (b'{"id": "a", "contents": "x"}', "id 'a' is already used in line 1"),
        (b'{"id": "b", "contents": "\xff"}', "UTF-8, got byte 0xff"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "a", "contents": "x"}\n\n' + line + b"\n")
    with pytest.raises(CorpusError) as caught:
        Corpus(path)
    assert (caught.value.file, caught.value.line) == (str(path), 3)
    assert words in caught.value.reason
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("title", "contents", "read"),
    [
        ("Oslo", "A city.", '"Oslo"\nA city.'),
        ("Oslo", '"Oslo"\nA city.', '"Oslo"\nA city.'),
        ("Oslo", "Oslo is a city.", '"Oslo"\nOslo is a city.'),
        ("Oslo", "Oslo\nA city.", "Oslo\nA city."),
        (1984, "A novel.", '"1984"\nA novel.'),
        ("Oslo", "Oslofjord lies there.", '"Oslo"\nOslofjord lies there.'),
        ("", "A city.", "A city."),
        (None, "A city.", "A city."),
    ],
)
def test_a_title_beside_contents_is_not_dropped(title: Any, contents: str, read: str) -> None:
    row = json.dumps({"id": "a", "title": title, "contents": contents})
    assert parse_passage(row.encode()).contents == read


def test_empty_passages_are_kept_counted_and_never_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.jsonl"
    rows = [{"id": "a", "text": "a city"}, {"id": "b", "text": ""}, {"id": "c", "contents": " "}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    corpus = Corpus(path)

    assert [p.contents for p in corpus] == ["a city", "", " "]
    assert "2 of 3 passages" in caplog.text
    dense = DenseRetriever.from_passages(list(corpus), BM25SketchEncoder())
    assert [p.id for p in dense.search(["city"], 3)[0]] == ["a"]


def test_empty_passages_take_no_places() -> None:
    class Same(BM25SketchEncoder):
        zero_finds_nothing = False

        def encode_queries(self, texts: Any) -> Any:
            return np.ones((len(texts), self.dim), np.float32)

        encode_passages = encode_queries

    texts = ["", " ", "", "alpha", "beta", "", "gamma"]
    passages = [Passage(str(n), text) for n, text in enumerate(texts)]
    found = DenseRetriever.from_passages(passages, Same()).search(["x"], 2)[0]
    assert [p.contents for p in found] == ["alpha", "beta"]


def test_bad_lines_are_counted_and_the_first_three_shown(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "contents": "x"}\n' + "[]\n" * 5)
    with pytest.raises(CorpusError, match=r"line 3: .*line 4: .*and 2 more lines") as caught:
        Corpus(path)
    assert caught.value.line == 2


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_corpus_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(CorpusError, match="holds no passages"):
        Corpus(tmp_path / "c.jsonl")


def test_a_missing_corpus_and_foreign_offsets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such corpus"):
        Corpus(tmp_path / "none.jsonl")
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "contents": "x"}\n')
    with pytest.raises(CorpusError, match="shorter than its table"):
        Corpus(path, np.array([[0, 29], [29, 60]]))


def test_scan_reports_every_byte_and_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "contents": "x"}\n\n{"id": "b", "contents": "y"}')
    seen: list[int] = []
    Corpus.scan(path, seen.append)
    assert sum(seen) == path.stat().st_size
    before = sha256_of(path)
    path.write_text(path.read_text().replace("y", "z"))
    assert sha256_of(path) != before


def test_real_corpus(real_data: Path) -> None:
    corpus = Corpus(real_data / "musique_small_corpus.jsonl")
    assert len(corpus) == 2432
    assert corpus[2431].contents.startswith('"')

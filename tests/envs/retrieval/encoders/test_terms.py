"""Words in any script: the same text is found however it is written."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs import Passage
from research_rl.envs.retrieval import build_index, extend_index, load_retriever
from research_rl.envs.retrieval.encoders import BM25SketchEncoder, sketch, words
from research_rl.envs.retrieval.search import BM25Retriever, DenseRetriever, bm25
from research_rl.envs.system import folded

pytest.importorskip("bm25s")

TEN = {
    "German": ("München: Hauptstadt von Bayern.", "HAUPTSTADT Bayern"),
    "Turkish": ("İstanbul Boğazı iki kıtayı ayırır.", "istanbul bogazi".replace("g", "ğ")),
    "Russian": ("Столица Перу — город Лима.", "столица перу"),
    "Greek": ("Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.", "ΑΘΉΝΑ πρωτεύουσα"),
    "Arabic": ("عاصمة بيرو هي ليما.", "عاصمة بيرو"),
    "Hindi": ("पेरू की राजधानी लीमा है।", "पेरू राजधानी"),
    "Thai": ("เมืองหลวงของเปรูคือลิมา", "เมืองหลวงเปรู"),
    "Japanese": ("日本の首都は東京である。", "日本の首都"),
    "Chinese": ("诺贝尔奖在斯德哥尔摩颁发。", "诺贝尔奖"),
    "Korean": ("대한민국의 수도는 서울특별시이다.", "수도 서울"),
}
OTHERS = [
    "Coffee is a drink.",
    "A bridge spans the river.",
    "鉄道の歴史。",
    "Кот спит.",
    "나무가 자란다.",
]


@pytest.mark.parametrize("language", TEN)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_what_is_asked_in_its_own_language_is_found(language: str, form: str) -> None:
    text, query = TEN[language]
    contents = [*OTHERS, unicodedata.normalize(form, text)]
    passages = [Passage(str(number), one) for number, one in enumerate(contents)]
    asked = [query, unicodedata.normalize(form, query)]

    for found in (
        *BM25Retriever.from_passages(passages).search(asked, 1),
        *DenseRetriever.from_passages(passages, BM25SketchEncoder()).search(asked, 1),
    ):
        assert [one.id for one in found] == [str(len(OTHERS))]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("日本の首都", ["日本", "本の", "の首", "首都"]),
        ("東", ["東"]),
        ("東京tower2", ["東京", "tower2"]),
        ("Ｔｏｋｙｏ ２０２０", ["tokyo", "2020"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Zu\u0308rich", ["zürich"]),
        ("cities' foo_bar C++", ["city", "foo_bar", "c"]),
        ("\u0301", []),
        ("co\u00adoperate", ["cooperate"]),
        ("葛\U000e0100城市", ["葛城", "城市"]),
        ("", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert words(text) == terms


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_is_cut_as_it_always_was(text: str) -> None:
    assert words(text, 2) == words(text, 1)


@given(st.text(max_size=60))
def test_a_text_has_the_same_terms_however_it_is_composed(text: str) -> None:
    once = words(text)
    assert words(unicodedata.normalize("NFD", text)) == once
    assert words(unicodedata.normalize("NFC", text)) == once
    assert all(once)
    assert folded(folded(text)) == folded(text)


def test_a_rule_of_a_later_version_is_refused() -> None:
    with pytest.raises(ValueError, match="the rule of words must be 1 or 2, got 3; update"):
        words("x", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dense", "bm25"])
def test_an_index_of_the_former_rule_keeps_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run of Han and kana was one word, and its parts were none."""
    run, part = "日本の首都", "首都"
    corpus = tmp_path / "c.jsonl"
    rows = [{"id": "run", "contents": f"{run}。 capital"}, {"id": "other", "contents": "鉄道"}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def as_formerly(text: str, rule: int = 1) -> list[str]:
        return words(text, 1)

    with monkeypatch.context() as patch:
        patch.setattr(bm25, "words", as_formerly)
        patch.setattr(sketch, "words", as_formerly)
        folder = build_index(corpus, tmp_path / "i", kind=kind)
    for file, place in (("manifest.json", "words"), ("sketch.json", "words")):
        if (folder / file).is_file():  # of a version that had no rules
            known = json.loads((folder / file).read_text())
            known.pop(place, None)
            (folder / file).write_text(json.dumps(known))

    found = load_retriever(folder).search([run, part, "capitals"], 1)

    assert [[p.id for p in row] for row in found] == [["run"], [], ["run"]]
    extend_index(folder, _longer(corpus, tmp_path / "longer.jsonl"))  # all is counted again
    assert [p.id for p in load_retriever(folder).search([part], 1)[0]] == ["run"]


def _longer(corpus: Path, path: Path) -> Path:
    path.write_text(corpus.read_text() + '{"id": "more", "contents": "Lima"}\n')
    return path

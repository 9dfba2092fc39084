"""The sketch against plain BM25."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.bm25 import DOCS, bm25
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from research_rl.envs.retrieval.encoders.make import make_encoder
from research_rl.envs.retrieval.encoders.sketch import BM25SketchEncoder
from research_rl.envs.retrieval.encoders.terms import fold_plural


def by_formula(query: str, docs: Sequence[str], k1: float, b: float, weight: int) -> Any:
    """What a sketch without errors gives: idf to the power 1.5, and the factor k1 + 1."""
    return (k1 + 1) * np.array(bm25(query, docs, k1, b, weight, power=1.5))


@pytest.mark.parametrize("settings", [(0.9, 0.75, 2), (1.5, 0.3, 1), (0.0, 1.0, 3)])
@pytest.mark.parametrize("query", ["capital of Norway", "Jane Austen's Oslo Oslo", "cities"])
def test_a_vocabulary_that_fits_gives_bm25_itself(
    settings: tuple[float, float, int], query: str
) -> None:
    k1, b, title_weight = settings
    encoder = BM25SketchEncoder(dim=64, k1=k1, b=b, title_weight=title_weight)
    encoder.fit(DOCS)
    scores = encoder.encode_passages(DOCS) @ encoder.encode_queries([query])[0]
    np.testing.assert_allclose(scores, by_formula(query, DOCS, k1, b, title_weight), rtol=1e-5)


def test_the_sketch_errs_less_the_longer_it_is() -> None:
    rng = np.random.default_rng(0)
    docs = [" ".join(f"w{i}" for i in rng.zipf(1.3, 60) % 5000) for _ in range(200)]
    queries = [" ".join(doc.split()[:6]) for doc in docs[:50]]
    exact = np.array([by_formula(q, docs, 0.9, 0.75, 1) for q in queries])
    errors = []
    for dim in (64, 256, 1024):
        encoder = BM25SketchEncoder(dim=dim, title_weight=1)
        encoder.fit(docs)
        made = encoder.encode_queries(queries) @ encoder.encode_passages(docs).T
        errors.append(float(np.abs(made - exact).mean()))
    # the standard deviation of a sketch falls with the root of its length
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


def test_words_that_no_passage_has_say_nothing() -> None:
    encoder = BM25SketchEncoder(dim=16)
    encoder.fit(DOCS)
    assert not encoder.encode_queries(["zebra", "", "!?"]).any()
    known, both = encoder.encode_queries(["Oslo", "Oslo zebra"])
    np.testing.assert_array_equal(known, both)


@how(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_text_has_one_vector_alone_and_among_others(texts: list[str]) -> None:
    encoder = BM25SketchEncoder(dim=16)
    encoder.fit(DOCS)
    for encode in (encoder.encode_queries, encoder.encode_passages):
        together = encode(texts)
        assert together.shape == (len(texts), 16)
        assert together.dtype == np.float32
        np.testing.assert_array_equal(together, np.concatenate([encode([t]) for t in texts]))


def test_what_was_fitted_survives_saving_and_another_process(tmp_path: Path) -> None:
    encoder = BM25SketchEncoder(dim=16, k1=1.1)
    encoder.fit([*DOCS, "a lone \ud800 surrogate"])
    encoder.save(tmp_path)
    np.save(tmp_path / "vectors.npy", encoder.encode_passages(DOCS))
    np.save(tmp_path / "queries.npy", encoder.encode_queries(DOCS))
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from research_rl.envs.retrieval.encoders.sketch import BM25SketchEncoder\n"
        f"folder = Path({str(tmp_path)!r}); docs = {DOCS!r}\n"
        f"encoder = BM25SketchEncoder(**{encoder.settings()!r}); encoder.load(folder)\n"
        "assert (encoder.encode_passages(docs) == np.load(folder / 'vectors.npy')).all()\n"
        "assert (encoder.encode_queries(docs) == np.load(folder / 'queries.npy')).all()\n"
        "assert 'torch' not in sys.modules and 'faiss' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "7"}
    )


def test_the_sketch_must_be_fitted_and_well_sized() -> None:
    with pytest.raises(RuntimeError, match="call fit"):
        BM25SketchEncoder().encode_queries(["x"])
    with pytest.raises(ValueError, match="must hold words, got none in 2 passages"):
        BM25SketchEncoder().fit(["?", "!"])
    with pytest.raises(ValueError, match=r"multiple of num_hashes=8, got 100"):
        BM25SketchEncoder(dim=100)
    with pytest.raises(ValueError, match=r"b=1\.5"):
        BM25SketchEncoder(b=1.5)
    with pytest.raises(ValueError, match=r"'bm25-sketch' does not take these options.*pooling"):
        make_encoder("bm25-sketch", pooling="mean")


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        *(("films", "film"), ("cities", "city"), ("ties", "tie"), ("class", "class")),
        *(("his", "his"), ("this", "this"), ("bus", "bus"), ("virus", "virus"), ("as", "as")),
    ],
)
def test_plurals(word: str, stem: str) -> None:
    assert fold_plural(word) == stem

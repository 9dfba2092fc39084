"""Dense search is exact, and gives one query the same passages in whatever company it is asked."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

faiss = pytest.importorskip("faiss")

from research_rl.envs.retrieval import BM25SketchEncoder, DenseRetriever  # noqa: E402
from research_rl.envs.retrieval.encoders.base import Encoder, Vectors  # noqa: E402
from research_rl.envs.retrieval.vectors.faiss_types import Metric, new_index  # noqa: E402
from research_rl.envs.types import Passage  # noqa: E402

NAMES = [f"{a}{b}{c}" for a in "bdkmr" for b in ("al", "or", "in", "us") for c in ("ka", "te", "")]
RELATIONS = ("mother", "boss", "friend", "teacher", "doctor", "neighbour", "coach", "rival")


class Numbers(Encoder):
    """Reads the vector out of the text, and counts what it is asked."""

    name = "numbers"

    def __init__(self, dim: int) -> None:
        self._dim, self.asked = dim, 0

    @property
    def dim(self) -> int:
        return self._dim

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        self.asked += len(texts)
        return np.array([text.split() for text in texts], np.float32)

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        return np.array([text.split() for text in texts], np.float32)

    def settings(self) -> dict[str, object]:
        return {"dim": self._dim}


def numbers(vectors: Sequence[Sequence[float]], metric: Metric = "ip") -> DenseRetriever:
    passages = [Passage(str(i), " ".join(map(str, v))) for i, v in enumerate(vectors)]
    return DenseRetriever.from_passages(passages, Numbers(len(vectors[0])), metric)


@pytest.fixture(scope="module")
def world() -> DenseRetriever:
    """Every relation of every name, one fact a passage."""
    rng = np.random.default_rng(0)
    facts = [(r, n, str(rng.choice(NAMES))) for n in NAMES for r in RELATIONS]
    passages = [
        Passage(f"{n}/{r}", f"{r} of {n}\nthe {r} of {n} is {other} .") for r, n, other in facts
    ]
    return DenseRetriever.from_passages(passages, BM25SketchEncoder(dim=128))


VECTORS = st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=30)


@given(VECTORS, VECTORS, st.integers(1, 8), st.sampled_from(["ip", "l2"]))
def test_the_best_come_first_and_ties_keep_the_order_of_the_corpus(
    rows: list[list[int]], asked: list[list[int]], k: int, metric: Metric
) -> None:
    retriever = numbers(rows, metric)
    queries = [f"{a} {b}" for a, b in asked]
    x, q = np.array(rows), np.array(asked)
    scores = q @ x.T if metric == "ip" else -((q[:, None] - x[None]) ** 2).sum(-1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = retriever.search(queries, k)
    assert [[p.id for p in row] for row in found] == [[str(i) for i in row] for row in order]
    wanted = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_allclose([[p.score for p in row] for row in found], wanted, atol=1e-3)
    assert found == [retriever.search([query], k)[0] for query in queries]


def test_many_ties_at_the_border_keep_the_order_too() -> None:
    retriever = numbers([[1.0, float(i == 700)] for i in range(1000)])
    assert [p.id for p in retriever.search(["1 0"], 4)[0]] == ["0", "1", "2", "3"]
    assert [p.id for p in retriever.search(["1 1"], 3)[0]] == ["700", "0", "1"]
    assert [p.id for p in retriever.search(["0 0"], 3)[0]] == ["0", "1", "2"]


def test_each_fact_finds_its_own_passage(world: DenseRetriever) -> None:
    queries = [f"the {r} of {n}" for n in NAMES for r in RELATIONS]
    found = world.search(queries, 1)
    assert [row[0].id for row in found] == [p.id for p in world.passages]


def test_company_changes_nothing(world: DenseRetriever) -> None:
    queries = [f"the {r} of {n}" for n in NAMES[:9] for r in RELATIONS] + ["boss", "", "zebra"]
    together = [[p.id for p in row] for row in world.search(queries, 5)]
    alone = [[p.id for p in world.search([query], 5)[0]] for query in queries]
    few = [row for i in range(0, len(queries), 7) for row in world.search(queries[i : i + 7], 5)]
    assert together == alone == [[p.id for p in row] for row in few]


def test_real_paragraphs_come_the_same_alone_and_together(real_data: object) -> None:
    from pathlib import Path

    from research_rl.envs.questions.read import read_questions
    from research_rl.envs.retrieval import Corpus

    folder = Path(str(real_data))
    corpus = Corpus(folder / "musique_small_corpus.jsonl")
    retriever = DenseRetriever.from_passages(corpus, BM25SketchEncoder(dim=512))
    queries = [q.text for q in read_questions(folder / "musique_small_questions.jsonl")]
    together = [[p.id for p in row] for row in retriever.search(queries, 5)]
    assert together == [[p.id for p in retriever.search([query], 5)[0]] for query in queries]


def test_equal_queries_are_searched_once() -> None:
    retriever = numbers([[1, 0], [0, 1]])
    encoder = retriever.encoder
    assert isinstance(encoder, Numbers)
    first, second, third = retriever.search(["1 0", "0 1", "1 0"], 1)
    assert encoder.asked == 2
    assert first == third != second
    assert first is not third
    assert retriever.search([], 3) == []
    assert encoder.asked == 2


def test_a_small_corpus_gives_all_it_has() -> None:
    assert [len(row) for row in numbers([[1, 0], [0, 1]]).search(["1 1", "2 1"], 5)] == [2, 2]


def test_several_queries_go_through_blas_and_the_threshold_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    before = faiss.cvar.distance_compute_blas_threshold
    retriever = numbers([[1, 0], [0, 1]])
    search = retriever.index.search

    class Spy:
        metric_type = retriever.index.metric_type

        def search(self, *args: object) -> object:
            seen.append(faiss.cvar.distance_compute_blas_threshold)
            return search(*args)

    retriever.index = Spy()
    retriever.search(["1 0"], 1)
    retriever.search(["1 0", "0 1"], 1)
    assert seen == [before, 1]
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_copies_and_pickles(world: DenseRetriever) -> None:
    assert copy.deepcopy(world) is world
    again = pickle.loads(pickle.dumps(world))
    query = f"the boss of {NAMES[0]}"
    assert again.search([query], 5) == world.search([query], 5)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        numbers([[1, 0]]).search(["1 0"], 0)
    with pytest.raises(ValueError, match="one vector for each passage, got 0 vectors for 1"):
        DenseRetriever(new_index(2), [Passage("a", "b")], Numbers(2))
    with pytest.raises(ValueError, match="must not be empty"):
        DenseRetriever(new_index(2), [], Numbers(2))
    with pytest.raises(ValueError, match="'ip', 'l2', got 'cosine'"):
        new_index(2, "cosine")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[cpu\]'"):
        new_index(2)


def test_a_query_without_a_finite_vector_is_an_error_and_not_nothing_found() -> None:
    retriever = numbers([[1, 0], [0, 1]])
    for text in ("nan 1", "inf 1"):
        with pytest.raises(ValueError, match=f"got NaN or infinity for '{text}'"):
            retriever.search(["1 1", text], 1)

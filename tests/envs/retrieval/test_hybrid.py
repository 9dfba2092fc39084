"""BM25, fusion and reranking: each against its formula, each one retriever like any other."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("bm25s")

from doubles.bm25 import DOCS, bm25
from doubles.tiny_bert import save_bert

from research_rl.envs.retrieval import (
    BM25Retriever,
    HybridRetriever,
    IndexFolderError,
    RerankRetriever,
    build_index,
    cli,
    extend_index,
    load_retriever,
)
from research_rl.envs.retrieval.encoders import BM25SketchEncoder
from research_rl.envs.retrieval.index.manifest import read_manifest
from research_rl.envs.retrieval.search import DenseRetriever, RankFusion, tune_weights
from research_rl.envs.retrieval.search.bm25 import largest
from research_rl.envs.types import Passage, Retriever, RetrieverUnavailable

PASSAGES = [Passage(str(i), text) for i, text in enumerate(DOCS)]


class Fixed(Retriever):
    """Ranks passages of given ids, and counts the calls."""

    def __init__(self, *ids: str) -> None:
        self.ids, self.calls = ids, 0

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.calls += 1
        return [[Passage(i, f"text {i}") for i in self.ids[:k]] for _ in queries]


class Down(Retriever):
    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        raise RetrieverUnavailable("http://gone after 3 attempts")


@pytest.mark.parametrize("query", ["capital of Norway", "Jane Austen's Oslo Oslo", "love", "zebra"])
@pytest.mark.parametrize("settings", [(0.9, 0.75, 2), (1.5, 0.3, 1)])
def test_bm25_is_the_formula(query: str, settings: tuple[float, float, int]) -> None:
    k1, b, title_weight = settings
    retriever = BM25Retriever.from_passages(PASSAGES, k1=k1, b=b, title_weight=title_weight)
    wanted = bm25(query, DOCS, *settings)
    found = retriever.search([query], 4)[0]
    order = [i for i in np.argsort(-np.array(wanted), kind="stable") if wanted[i] > 0]
    assert [p.id for p in found] == [str(i) for i in order], "and none that shares no word"
    np.testing.assert_allclose([p.score for p in found], [wanted[i] for i in order], rtol=1e-5)


def test_the_largest_come_in_order_and_ties_by_place() -> None:
    scores = np.array([1, 3, 2, 3, 2, 2], np.float32)
    for k in range(1, 7):
        assert largest(scores, k).tolist() == [1, 3, 2, 4, 5, 0][:k]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [json.dumps({"id": p.id, "contents": p.contents}) for p in PASSAGES]
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    return tmp_path / "c.jsonl"


def test_a_bm25_folder_opens_as_what_was_built(tmp_path: Path, corpus: Path) -> None:
    folder = build_index(corpus, tmp_path / "i", kind="bm25", k1=1.2)
    retriever = load_retriever(folder)
    memory = BM25Retriever.from_passages(PASSAGES, k1=1.2)
    queries = ["capital of France", "Austen", "?"]
    assert retriever.search(queries, 3) == memory.search(queries, 3)
    assert pickle.loads(pickle.dumps(retriever)) is retriever
    assert copy.deepcopy(retriever) is retriever
    manifest = read_manifest(folder)
    assert manifest["bm25"] == {"k1": 1.2, "b": 0.75, "title_weight": 2}
    assert "encoder" not in manifest
    corpus.write_text(corpus.read_text() + "\n" + json.dumps({"id": "x", "contents": "y"}))
    with pytest.raises(
        IndexFolderError, match=r"--kind bm25 --k1 1.2 --b 0.75 --title-weight 2 --overwrite"
    ):
        load_retriever(folder, cache_size=0)


def test_a_hybrid_folder_is_the_fusion_of_both(tmp_path: Path, corpus: Path) -> None:
    pytest.importorskip("faiss")
    folder = build_index(corpus, tmp_path / "h", kind="hybrid", dim=64)
    dense = load_retriever(build_index(corpus, tmp_path / "d", dim=64))
    lexical = load_retriever(build_index(corpus, tmp_path / "b", kind="bm25"))
    retriever = load_retriever(folder)
    queries = ["capital of France", "Austen in Oslo"]
    assert retriever.search(queries, 3) == HybridRetriever([dense, lexical]).search(queries, 3)
    assert pickle.loads(pickle.dumps(retriever)) is retriever
    by_name = HybridRetriever([str(tmp_path / "d"), str(tmp_path / "b")])
    assert by_name.search(queries, 3) == retriever.search(queries, 3)
    assert pickle.loads(pickle.dumps(by_name)).search(queries, 3) == retriever.search(queries, 3)


def test_fusion_is_the_sum_of_weighted_reciprocal_ranks() -> None:
    fused = HybridRetriever([Fixed("a", "b", "c"), Fixed("c", "d")], weights=[1.0, 2.0], k=60)
    found = fused.search(["q"], 10)[0]
    wanted = {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 2 / 61, "d": 2 / 62}
    assert {p.id: pytest.approx(p.score) for p in found} == wanted
    assert [p.id for p in found] == ["c", "d", "a", "b"]
    assert [p.id for p in fused.search(["q"], 2)[0]] == ["c", "d"]
    ties = HybridRetriever([Fixed("a"), Fixed("b")])
    assert [p.id for p in ties.search(["q"], 2)[0]] == ["a", "b"]


def test_what_only_fills_up_a_ranking_is_ranked_by_nobody() -> None:
    passages = [Passage(name, f"text {name}") for name in [*map(str, range(30)), "oslo"]]
    words_of = BM25Retriever.from_passages(passages)
    near = Fixed(*(str(i) for i in range(29, -1, -1)), "oslo")
    found = HybridRetriever([near, words_of], depth=40).search(["Oslo"], 31)[0]
    assert [p.id for p in found[:3]] == ["oslo", "29", "28"]  # not 0, the first in the corpus
    assert found[0].score == pytest.approx(1 / 91 + 1 / 61)
    nothing = HybridRetriever([words_of, near], depth=40).search(["zebra"], 31)[0]
    assert [p.id for p in nothing] == [*(str(i) for i in range(29, -1, -1)), "oslo"]
    alone = HybridRetriever([words_of, words_of]).search(["zebra"], 3)[0]
    assert alone == []


def test_retrievers_of_different_corpora_are_refused() -> None:
    one = BM25Retriever.from_passages([Passage("0", "Oslo lies in Norway")])
    other = BM25Retriever.from_passages([Passage("0", "Lima lies in Peru")])
    with pytest.raises(ValueError, match=r"the same corpus, got two texts of .*'0'"):
        HybridRetriever([one, other]).search(["lies"], 1)


def test_a_retriever_that_is_down_is_an_error_not_half_an_answer() -> None:
    with pytest.raises(RetrieverUnavailable, match="3 attempts"):
        HybridRetriever([Fixed("a"), Down()]).search(["q"], 1)
    for arguments, text in (
        (([Fixed("a")],), "at least two"),
        (([Fixed("a"), Fixed("b")], [1.0]), "one for each of 2"),
        (([Fixed("a"), Fixed("b")], [1.0, 0.0]), "must be positive"),
    ):
        with pytest.raises(ValueError, match=text):
            HybridRetriever(*arguments)  # type: ignore[arg-type]


def test_results_are_kept_and_bounded() -> None:
    one, two = Fixed("a", "b"), Fixed("c", "d")
    fused = HybridRetriever([one, two], cache_size=2)
    first = fused.search(["p", "q", "p"], 2)
    assert first[0] == first[2]
    assert first[0] is not first[2]
    assert fused.search(["q", "p"], 2) == [first[1], first[0]]
    assert one.calls == 1
    fused.search(["p"], 1)  # another k is another search
    assert one.calls == 2
    fused.search(["r", "s", "t"], 1)
    fused.search(["p"], 2)
    assert one.calls == 4


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT that classifies pairs."""
    from transformers import BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "cross"
    return save_bert(folder, BertForSequenceClassification, num_labels=1)


def test_the_cross_encoder_sorts_the_candidates(cross_encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    behind = BM25Retriever.from_passages(PASSAGES)
    retriever = RerankRetriever(
        behind, str(cross_encoder), candidates=4, max_length=40, batch_size=3, device="cpu"
    )
    queries = ["capital of norway", "jane austen"]
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    for query, found in zip(queries, retriever.search(queries, 2), strict=True):
        scores = {}
        for passage in behind.search([query], 4)[0]:
            ids = tokenizer(
                query, passage.contents, return_tensors="pt", truncation=True, max_length=40
            )
            with torch.inference_mode():
                scores[passage.id] = model(**ids).logits[0, -1].item()
        best = sorted(scores, key=lambda i: -scores[i])[:2]
        assert [p.id for p in found] == best
        assert [p.score for p in found] == pytest.approx([scores[i] for i in best], abs=1e-5)
    again = pickle.loads(pickle.dumps(retriever))
    assert again.search(queries, 2) == retriever.search(queries, 2)
    with pytest.raises(ValueError, match="dtype must be"):
        RerankRetriever(behind, "x", dtype="int8")


def test_a_model_that_scores_nothing_is_refused(cross_encoder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    behind = BM25Retriever.from_passages(PASSAGES)
    AutoModel.from_pretrained(cross_encoder).save_pretrained(tmp_path)  # no classifier
    AutoTokenizer.from_pretrained(cross_encoder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without weights for classifier.bias"):
        RerankRetriever(behind, str(tmp_path), max_length=40, device="cpu").search(["oslo"], 1)
    retriever = RerankRetriever(behind, str(cross_encoder), max_length=40, device="cpu")
    torch.nn.init.constant_(retriever._loaded()[1].classifier.weight, float("nan"))
    with pytest.raises(ValueError, match="scores must be finite"):
        retriever.search(["oslo"], 1)


class Counted(list[Passage]):
    """A corpus that counts what is read of it."""

    reads = 0

    def __getitem__(self, place: Any) -> Any:
        self.reads += 1
        return super().__getitem__(place)


def test_a_fusion_over_one_corpus_reads_the_texts_that_it_returns_and_no_others() -> None:
    rows = [Passage(str(n), f"page {n}\nword{n % 7} word{n % 11} page") for n in range(300)]
    corpus = Counted(rows)
    encoder = BM25SketchEncoder()
    dense = DenseRetriever.from_passages(corpus, encoder)
    lexical = BM25Retriever.from_passages(corpus)
    queries = ["word3 word5", "page 17", "nothing", "word6"]
    apart = RankFusion([DenseRetriever.from_passages(rows, encoder), lexical])
    corpus.reads = 0

    found = RankFusion([dense, lexical]).search(queries, 5)

    assert corpus.reads == sum(map(len, found)) == 15
    assert found == apart.search(queries, 5), "as rankings are fused that have texts alone"


def ranking(*places: int) -> tuple[list[int], list[float]]:
    return list(places), [1.0] * len(places)


def test_weights_are_chosen_by_one_half_and_measured_on_the_other() -> None:
    good, bad = ranking(1, 2, 3), ranking(7, 8, 9)
    found = tune_weights([(bad, good)] * 40, [{1}] * 40, k=1)
    assert found.weights[0] < 0.5
    assert (found.recall, found.members, found.questions) == (1.0, (0.0, 1.0), 20)
    assert (found.equal, found.worth_it) == (0.0, False)
    half = [(good, bad), (bad, good)] * 2
    tuned = tune_weights(half * 10, [{1}] * 40, k=2)
    assert tuned.weights == (0.5, 0.5), "equal unless others are better"
    assert (tuned.recall, tuned.members) == (1.0, (0.5, 0.5)) or tuned.members == (0.0, 1.0)
    for few in (0, 19):
        with pytest.raises(ValueError, match=f"at least 20 questions .* got {few}"):
            tune_weights([(good, bad)] * few, [{1}] * few)


def test_a_hybrid_index_is_tuned_by_questions_and_keeps_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, questions = tmp_path / "c.jsonl", tmp_path / "q.jsonl"
    rows = [{"id": f"p{i}", "contents": f'"Town {i}"\nriver{i} hill{i % 5}'} for i in range(60)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        {"id": f"q{i}", "question": f"Which river{i}?", "answer": "x", "gold_ids": [f"p{i}"]}
        for i in range(50)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    folder = build_index(corpus, tmp_path / "i", kind="hybrid", dim=16, num_hashes=2)
    cli.main(["tune", str(folder), "--questions", str(questions)])
    said = capsys.readouterr().out
    assert "chosen by every second question; on the other 25 recall@5" in said
    weights = read_manifest(folder)["fusion"]["weights"]
    retriever = load_retriever(folder)
    assert isinstance(retriever, RankFusion)
    assert retriever.weights == weights
    assert f"weights {weights[0]:g} (vectors) and {weights[1]:g} (words)" in said
    with corpus.open("a") as file:
        file.write('{"id": "more", "contents": "more of river3"}\n')
    extend_index(folder)
    assert read_manifest(folder)["corpus"]["count"] == 61
    assert read_manifest(folder)["fusion"]["weights"] == weights
    with pytest.raises(SystemExit):
        cli.main(["tune", str(build_index(corpus, tmp_path / "d")), "--questions", str(questions)])
    assert "kind must be hybrid to be tuned for questions, got 'dense'" in capsys.readouterr().err


def test_folders_of_one_corpus_share_it_and_those_of_others_do_not(tmp_path: Path) -> None:
    corpus, other = tmp_path / "c.jsonl", tmp_path / "d.jsonl"
    rows = [{"id": f"p{i}", "contents": f"river{i} hill{i % 5}"} for i in range(20)]
    for file in (corpus, other):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = [
        build_index(corpus, tmp_path / "a", dim=64),
        build_index(corpus, tmp_path / "b", kind="bm25"),
        build_index(other, tmp_path / "o", kind="bm25"),
    ]
    both = HybridRetriever([str(folder) for folder in folders[:2]])
    assert both._shared_corpus() is both.retrievers[0].passages  # type: ignore[attr-defined]
    apart = HybridRetriever([str(folders[0]), str(folders[2])])
    assert apart._shared_corpus() is None
    queries = ["river3", "hill2", "zebra"]
    assert both.search(queries, 3) == apart.search(queries, 3)

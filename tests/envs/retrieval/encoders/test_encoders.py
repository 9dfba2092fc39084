"""Encoders: the sketch against plain BM25, Hugging Face models against a forward pass by hand."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from research_rl.envs.retrieval import IndexFolderError, build_index, load_retriever
from research_rl.envs.retrieval.encoders.huggingface import HFEncoder, known_settings, positions_of
from research_rl.envs.retrieval.encoders.make import make_encoder
from research_rl.envs.retrieval.encoders.model_card import digest_of
from research_rl.envs.retrieval.encoders.sketch import BM25SketchEncoder
from research_rl.envs.retrieval.encoders.terms import fold_plural, words

DOCS = [
    '"Oslo"\nOslo is the capital of Norway; cities of the north.',
    '"Paris"\nParis is the capital of France, a city on the Seine.',
    '"Emma"\nEmma is a novel by Jane Austen about love, love and marriage.',
    "A passage without a title says that Jane Austen never lived in Oslo.",
]


def bm25(query: str, docs: Sequence[str], k1: float, b: float, title_weight: int) -> list[float]:
    """Return the score of each passage, straight from the formula, with idf to the power 1.5."""
    split = []
    for doc in docs:
        title, newline, _ = doc.partition("\n")
        split.append(Counter(words(doc) + (words(title) * (title_weight - 1) if newline else [])))
    mean = sum(sum(doc.values()) for doc in split) / len(split)
    scores = []
    for doc in split:
        score = 0.0
        for term in words(query):
            df = sum(term in other for other in split)
            if tf := doc[term]:
                idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
                norm = k1 * (1 - b + b * sum(doc.values()) / mean)
                score += idf**1.5 * tf * (k1 + 1) / (tf + norm)
        scores.append(score)
    return scores


@pytest.mark.parametrize("settings", [(0.9, 0.75, 2), (1.5, 0.3, 1), (0.0, 1.0, 3)])
@pytest.mark.parametrize("query", ["capital of Norway", "Jane Austen's Oslo Oslo", "cities"])
def test_a_vocabulary_that_fits_gives_bm25_itself(
    settings: tuple[float, float, int], query: str
) -> None:
    k1, b, title_weight = settings
    encoder = BM25SketchEncoder(dim=64, k1=k1, b=b, title_weight=title_weight)
    encoder.fit(DOCS)
    scores = encoder.encode_passages(DOCS) @ encoder.encode_queries([query])[0]
    np.testing.assert_allclose(scores, bm25(query, DOCS, k1, b, title_weight), rtol=1e-5)


def test_the_sketch_errs_less_the_longer_it_is() -> None:
    rng = np.random.default_rng(0)
    docs = [" ".join(f"w{i}" for i in rng.zipf(1.3, 60) % 5000) for _ in range(200)]
    queries = [" ".join(doc.split()[:6]) for doc in docs[:50]]
    exact = np.array([bm25(q, docs, 0.9, 0.75, 1) for q in queries])
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


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with its own WordPiece tokenizer, saved as people save them."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789:"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-e5"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(folder: Path, text: str, pooling: str, normalize: bool, max_length: int) -> Any:
    """Return the vector of one unpadded text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(
        text, return_tensors="pt", truncation=True, max_length=max_length
    )
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**ids).last_hidden_state[0]
    vector = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    return (vector / vector.norm() if normalize else vector).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_padding_and_order_change_nothing(bert: Path, pooling: Any, normalize: bool) -> None:
    texts = ["oslo", "a much longer text about norway and france " * 3, "", "paris: the city"]
    encoder = HFEncoder(
        str(bert),
        query_prefix="query: ",
        passage_prefix="passage: ",
        pooling=pooling,
        normalize=normalize,
        max_length=20,
        batch_size=3,
        device="cpu",
    )
    for encode, prefix in (
        (encoder.encode_queries, "query: "),
        (encoder.encode_passages, "passage: "),
    ):
        wanted = [by_hand(bert, prefix + t, pooling, normalize, 20) for t in texts]
        made = encode(texts)
        assert made.shape == (4, encoder.dim)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, wanted, atol=1e-5)


def test_left_padding_pools_the_same(bert: Path) -> None:
    texts = ["oslo", "a longer text about norway"]
    for pooling in ("mean", "cls", "last"):
        right = HFEncoder(str(bert), pooling=pooling, device="cpu")
        left = HFEncoder(str(bert), pooling=pooling, device="cpu")
        left._loaded()[0].padding_side = "left"
        # BERT's absolute positions shift with the padding, so compare the place that is pooled
        import torch

        mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
        states = torch.arange(8.0).reshape(2, 4, 1)
        pooled = {"mean": [[2.5], [5.5]], "cls": [[2.0], [4.0]], "last": [[3.0], [7.0]]}[pooling]
        left.normalize = False
        assert left._pool(states, mask).tolist() == pooled
        assert right.encode_queries(texts).shape == (2, 32)


def test_an_index_remembers_its_model(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from research_rl.envs.retrieval import build_index, load_retriever

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": i, "contents": d}) + "\n" for i, d in enumerate(DOCS))
    )
    folder = build_index(corpus, tmp_path / "index", encoder=str(bert), max_length=24, device="cpu")
    encoder = HFEncoder(str(bert), max_length=24, device="cpu")
    query = "capital of norway"
    scores = encoder.encode_passages(DOCS) @ encoder.encode_queries([query])[0]
    found = load_retriever(folder).search([query], 4)[0]
    assert [p.id for p in found] == [str(i) for i in np.argsort(-scores)]
    settings = json.loads((folder / "manifest.json").read_text())["encoder"]["settings"]
    assert (settings["query_prefix"], settings["pooling"]) == ("query: ", "mean")  # tiny-e5


LONG = " ".join(["norway"] * 300)


def test_texts_are_cut_to_what_the_model_has_positions_for(
    bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unasked = HFEncoder(str(bert), device="cpu")
    wanted = by_hand(bert, f"passage: {LONG}", "mean", True, 64)
    np.testing.assert_allclose(unasked.encode_passages([LONG])[0], wanted, atol=1e-5)
    assert unasked.settings()["max_length"] == 64
    assert not caplog.records
    asked = HFEncoder(str(bert), max_length=100, device="cpu")
    np.testing.assert_allclose(asked.encode_passages([LONG])[0], wanted, atol=1e-5)
    assert "max_length is 100" in caplog.text
    assert "takes 64 tokens (its positions)" in caplog.text


def test_a_tokenizer_that_takes_less_than_the_model_sets_the_length(
    bert: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny-e5"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 30}))
    encoder = HFEncoder(str(folder), device="cpu")
    wanted = by_hand(bert, f"passage: {LONG}", "mean", True, 30)
    np.testing.assert_allclose(encoder.encode_passages([LONG])[0], wanted, atol=1e-5)
    assert encoder.settings()["max_length"] == 30


def test_positions_that_stand_for_padding_are_not_counted() -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    assert positions_of(RobertaModel(config)) == 32


def test_a_length_without_room_for_a_text_is_refused_before_the_work(
    bert: Path, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": 1, "contents": LONG}) + "\n")
    with pytest.raises(ValueError, match=r"max_length must leave room for a text, got 5 tokens"):
        build_index(corpus, tmp_path / "i", encoder=str(bert), max_length=5, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    folder = build_index(corpus, tmp_path / "i", encoder=str(bert), device="cpu")
    settings = json.loads((folder / "manifest.json").read_text())["encoder"]["settings"]
    assert settings["max_length"] == 64


def test_a_pickled_encoder_leaves_its_weights_behind(bert: Path) -> None:
    encoder = HFEncoder(str(bert), device="cpu")
    vectors = encoder.encode_queries(["oslo \ud800"])
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled).encode_queries(["oslo \ud800"]), vectors)
    copy = HFEncoder(encoder.name, **encoder.settings())
    assert copy.settings() == encoder.settings()


@pytest.mark.parametrize(
    ("name", "prefixes", "pooling", "normalize"),
    [
        ("intfloat/e5-base-v2", ("query: ", "passage: "), "mean", True),
        ("intfloat/multilingual-e5-large", ("query: ", "passage: "), "mean", True),
        ("BAAI/bge-base-en-v1.5", ("Represent this sentence", ""), "cls", True),
        ("BAAI/bge-m3", ("", ""), "cls", True),
        ("thenlper/gte-base", ("", ""), "mean", True),
        ("facebook/contriever-msmarco", ("", ""), "mean", False),
        ("intfloat/e5-mistral-7b-instruct", ("Instruct: ", ""), "last", True),
        ("/models/e5-base-v2/", ("query: ", "passage: "), "mean", True),
        ("/e5-runs/mine", ("", ""), "mean", True),
    ],
)
def test_known_families(
    name: str, prefixes: tuple[str, str], pooling: str, normalize: bool
) -> None:
    known = known_settings(name)
    assert known["query_prefix"].startswith(prefixes[0])
    assert bool(known["query_prefix"]) == bool(prefixes[0])
    assert known["passage_prefix"] == prefixes[1]
    assert (known["pooling"], known["normalize"]) == (pooling, normalize)


def test_what_is_said_overrules_what_is_known() -> None:
    encoder = HFEncoder("intfloat/e5-base-v2", query_prefix="", pooling="cls", normalize=False)
    assert (encoder.query_prefix, encoder.passage_prefix) == ("", "passage: ")
    assert (encoder.pooling, encoder.normalize) == ("cls", False)
    with pytest.raises(ValueError, match="pooling must be"):
        HFEncoder("x", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype must be"):
        HFEncoder("x", dtype="int8")


def as_sentence_model(bert: Path, folder: Path, pooling: str, steps: Sequence[str]) -> Path:
    """Copy a model into the layout of sentence-transformers."""
    shutil.copytree(bert, folder)
    types = ["Transformer", "Pooling", *steps]
    modules = [
        {"idx": i, "path": f"{i}_{t}" if i else "", "type": f"sentence_transformers.models.{t}"}
        for i, t in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False} | {pooling: True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    prompts = {"prompts": {"query": "ask: ", "document": "doc: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def test_a_sentence_model_states_how_it_pools(bert: Path, tmp_path: Path) -> None:
    steps = ["Normalize"]
    folder = as_sentence_model(bert, tmp_path / "mine", "pooling_mode_cls_token", steps)
    encoder = HFEncoder(str(folder), device="cpu")
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("cls", True, 9)
    assert (encoder.query_prefix, encoder.passage_prefix) == ("ask: ", "doc: ")
    wanted = by_hand(bert, "ask: oslo in norway", "cls", True, 9)
    np.testing.assert_allclose(encoder.encode_queries(["oslo in norway"])[0], wanted, atol=1e-5)
    assert HFEncoder(str(folder), pooling="mean", max_length=20).max_length == 20
    bare = as_sentence_model(bert, tmp_path / "bare", "pooling_mode_mean_tokens", [])
    assert HFEncoder(str(bare)).normalize is False
    for name, pooling, more, text in (
        ("max", "pooling_mode_max_tokens", [], "must pool by mean, cls or last token"),
        ("dense", "pooling_mode_mean_tokens", ["Dense"], "got a step Dense"),
    ):
        with pytest.raises(ValueError, match=text):
            HFEncoder(str(as_sentence_model(bert, tmp_path / name, pooling, more)))


def test_dpr_has_a_model_for_queries_and_one_for_passages(bert: Path, tmp_path: Path) -> None:
    import torch
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

    config = DPRConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    towers = {"dpr-ctx_encoder": DPRContextEncoder, "dpr-question_encoder": DPRQuestionEncoder}
    made = {name: kind(config).eval() for name, kind in towers.items()}
    for name, model in made.items():
        shutil.copytree(bert, tmp_path / name)
        model.save_pretrained(tmp_path / name)
    encoder = HFEncoder(str(tmp_path / "dpr-ctx_encoder"), device="cpu")
    tokenizer, _ = encoder._loaded()
    ids = tokenizer("oslo", return_tensors="pt")
    for name, encode in zip(made, (encoder.encode_passages, encoder.encode_queries), strict=True):
        with torch.inference_mode():
            wanted = made[name](**ids).pooler_output[0].numpy()
        np.testing.assert_allclose(encode(["oslo"])[0], wanted, atol=1e-5)


def test_the_revision_of_the_weights_is_kept(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    commit, cache = "c0ffee" + 34 * "0", tmp_path / "models--some--encoder"
    shutil.copytree(bert, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    for name, asked, kept in (
        (str(bert), None, None),
        ("some/encoder", None, commit),
        ("some/encoder", commit, commit),
    ):
        encoder = HFEncoder(name, revision=asked)
        assert (encoder.dim, encoder.settings()["revision"]) == (32, kept)


def test_a_folder_of_a_model_is_found_from_elsewhere(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    models, corpus = tmp_path / "models", tmp_path / "c.jsonl"
    shutil.copytree(bert, models / "tiny-e5")
    corpus.write_text(json.dumps({"id": "1", "contents": "abc"}))
    monkeypatch.chdir(tmp_path)
    index = build_index("c.jsonl", "i", encoder="models/tiny-e5")
    monkeypatch.chdir("/")
    assert load_retriever(index).search(["abc"], 1)[0][0].id == "1"
    models.rename(tmp_path / "gone")
    with pytest.raises(IndexFolderError, match=r"encoder of index .* is not at .*tiny-e5; put it"):
        load_retriever(index, cache_size=0)


def test_an_index_refuses_a_model_whose_weights_were_changed(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from transformers import AutoModel

    from research_rl.envs.retrieval import merge_shards

    model, corpus = tmp_path / "tiny-e5", tmp_path / "c.jsonl"
    shutil.copytree(bert, model)
    corpus.write_text(json.dumps({"id": "1", "contents": "abc"}))
    index = build_index(corpus, tmp_path / "i", encoder=str(model))
    shard = build_index(corpus, tmp_path / "p", encoder=str(model), shard="0/1")
    shutil.copytree(model, tmp_path / "copy")
    shutil.rmtree(model)
    shutil.copytree(tmp_path / "copy", model)  # the same again, of another age
    load_retriever(index, cache_size=1)
    trained = AutoModel.from_pretrained(model)
    trained.encoder.layer[1].output.dense.weight.data[0, 0] += 1
    trained.save_pretrained(model)
    with pytest.raises(IndexFolderError, match=r"weights: .* research index build --corpus"):
        load_retriever(index, cache_size=0)
    with pytest.raises(IndexFolderError, match="do not belong together"):
        merge_shards([shard], tmp_path / "m")


def test_weights_of_any_size_are_told_apart(tmp_path: Path) -> None:
    digests = set()
    for place in (None, 0, 40_000_000, 99_999_999):
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(100_000_000)
            if place is not None:
                file.seek(place)
                file.write(b"x" * min(2 << 20, 100_000_000 - place))
        digests.add(digest_of([tmp_path]))
    assert len(digests) == 4
    assert digest_of([]) is None

"""Encoders of Hugging Face models against a forward pass by hand, and what is known of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research_rl.envs.retrieval import build_index
from research_rl.envs.retrieval.encoders.huggingface import HFEncoder, known_settings, positions_of


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
        ("/models/stage5", ("", ""), "mean", True),
        ("BAAI/bge-multilingual-gemma2", ("<instruct>", ""), "last", True),
        ("BAAI/bge-en-icl", ("<instruct>", ""), "last", True),
        ("Alibaba-NLP/gte-modernbert-base", ("", ""), "cls", True),
        ("Alibaba-NLP/gte-multilingual-base", ("", ""), "cls", True),
        ("Alibaba-NLP/gte-Qwen1.5-7B-instruct", ("Instruct: ", ""), "last", True),
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
    assert HFEncoder(str(tmp_path / "max"), pooling="mean").normalize is False


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

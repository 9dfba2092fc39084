"""The weights behind an encoder: found from elsewhere, left behind, and told apart."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from doubles.bm25 import DOCS

from research_rl.envs.retrieval import IndexFolderError, build_index, load_retriever
from research_rl.envs.retrieval.encoders.huggingface import HFEncoder
from research_rl.envs.retrieval.encoders.model_card import digest_of


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


def test_a_pickled_encoder_leaves_its_weights_behind(bert: Path) -> None:
    encoder = HFEncoder(str(bert), device="cpu")
    vectors = encoder.encode_queries(["oslo \ud800"])
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled).encode_queries(["oslo \ud800"]), vectors)
    copy = HFEncoder(encoder.name, **encoder.settings())
    assert copy.settings() == encoder.settings()


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


@pytest.mark.parametrize("last", [["Normalize"], []])
def test_a_known_family_on_the_hub_is_asked_how_it_pools(
    last: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    commit, cache = "c0ffee" + 34 * "0", tmp_path / "models--some--bge-new"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    types = (
        "Transformer",
        "Pooling",
        *last,
    )  # without the last the family's vectors stay of length 1
    files = {
        "modules.json": [{"path": t, "type": f"sentence_transformers.models.{t}"} for t in types],
        "Pooling/config.json": {"pooling_mode_lasttoken": True},
        "sentence_bert_config.json": {"max_seq_length": 8192},
    }
    for name, content in files.items():
        file = cache / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    encoder = HFEncoder("some/bge-new")
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("last", True, 512)
    assert HFEncoder("some/bge-new", pooling="cls").pooling == "cls"
    assert HFEncoder("some/bge-not-there").pooling == "cls"


def test_a_model_whose_first_token_sees_no_other_is_not_pooled_by_it(
    bert: Path, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaModel

    sizes = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    folder = tmp_path / "bge-writer"
    shutil.copytree(bert, folder)
    LlamaModel(LlamaConfig(**sizes, **layers)).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"pooling must be 'last' or 'mean' .*, got 'cls'"):
        HFEncoder(str(folder), device="cpu").encode_queries(["a"])
    one, other = HFEncoder(str(folder), pooling="last", device="cpu").encode_queries(["a", "b"])
    assert not np.allclose(one, other)


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

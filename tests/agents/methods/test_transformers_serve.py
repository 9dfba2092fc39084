"""The methods against the real `transformers serve`, with a tiny random checkpoint on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny
from doubles.fake_retrieval import FakeRetriever

from research_rl.agents import (
    Agent,
    IRCoT,
    IterRetGen,
    LocalGenerator,
    ModelUnavailable,
    NaiveGeneration,
    NaiveRAG,
    OpenAIGenerator,
    ReSearch,
    SamplingParams,
)
from research_rl.envs import Question

pytestmark = pytest.mark.slow
pytest.importorskip("openai", reason="transformers serve needs it: pip install openai")

QUESTIONS = [Question(str(i), f"Who owns house {i}?", ("x",)) for i in range(3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    options = ["serve", str(checkpoint), "--port", str(port), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [sys.executable, "-c", command, *options, "--device", "cpu", "--dtype", "float32"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, "transformers serve ended"
            try:
                urllib.request.urlopen(f"{base}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield base
    finally:
        server.kill()
        server.wait()


def generator(
    url: str, checkpoint: Path, api: Any = "completions", **options: Any
) -> OpenAIGenerator:
    return OpenAIGenerator(url, str(checkpoint), api=api, retry_window=5.0, **options)


def test_greedy_text_is_that_of_the_same_model_here(url: str, checkpoint: Path) -> None:
    params = SamplingParams(max_response_tokens=12, temperature=0.0, stop=())
    inputs = ["Who?", "Where is the river?"]
    there = generator(url, checkpoint).generate(inputs, params)
    here = LocalGenerator(str(checkpoint), device="cpu").generate(inputs, params)
    for far, near in zip(there, here, strict=True):
        control = ("<pad>", "<|im_start|>", "<|im_end|>", "<eos>")  # serve leaves them out
        text = near.text
        for token in control:
            text = text.replace(token, "")
        assert (far.text, far.tokens) == (text, near.tokens)
        assert far.prompt_tokens == near.prompt_tokens


def test_chat_is_rendered_alike_there_and_here(url: str, checkpoint: Path) -> None:
    params = SamplingParams(max_response_tokens=8, temperature=0.0, stop=())
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}]
    by_server = generator(url, checkpoint, "chat").generate([chat], params)
    rendered = generator(url, checkpoint, tokenizer=str(checkpoint)).generate([chat], params)
    assert by_server[0].text == rendered[0].text
    assert by_server[0].prompt_tokens == rendered[0].prompt_tokens


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_method_runs_on_it(url: str, checkpoint: Path, api: str) -> None:
    served = generator(url, checkpoint, api)
    prompt = "base" if api == "completions" else "chat"
    retriever = FakeRetriever()
    short: dict[str, Any] = {"prompt": prompt, "max_tokens": 6}
    methods: list[Agent] = [
        NaiveGeneration(served, **short),
        NaiveRAG(served, retriever, 2, **short),
        IterRetGen(served, retriever, 2, 2, **short),
        IRCoT(served, retriever, 2, 2, **short),
        ReSearch(
            served,
            retriever,
            prompt="base" if api == "completions" else "instruct",
            max_response_tokens=8,
        ),
    ]
    for method in methods:
        predictions = method.answer(QUESTIONS)
        assert [p.question for p in predictions] == QUESTIONS
        assert [p.error for p in predictions] == [None] * 3
        assert all(p.sampled_tokens > 0 and p.seconds > 0 for p in predictions)


def test_a_wrong_model_name_is_told_at_once(url: str) -> None:
    wrong = OpenAIGenerator(url, "no-such-model", api="completions", retry_window=5.0)
    with pytest.raises(ModelUnavailable, match=r"no-such-model.*refused.*pinned"):
        wrong.generate(["Who?"], SamplingParams(4, stop=()))

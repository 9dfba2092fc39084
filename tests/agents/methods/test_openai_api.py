from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny
from doubles.served_model import completion, model_server

from research_rl.agents.methods.generators import ChatMessage
from research_rl.agents.methods.openai_generator import GO_ON, OPENAI_KEY_VARIABLE, OpenAIGenerator
from research_rl.agents.types import ModelUnavailable, SamplingParams

SHORT = SamplingParams(7, temperature=0.0, stop=("</search>",))
CHAT: list[ChatMessage] = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]


def ask(url: str | list[str], inputs: list[Any], params: Any = SHORT, **options: Any) -> list[Any]:
    options = {"api": "completions", "retry_window": 2.0, "timeout": 2.0, **options}
    return OpenAIGenerator(url, "tiny", **options).generate(inputs, params)


def test_a_request_holds_what_was_asked_for() -> None:
    with model_server(lambda body: "yes") as server:
        params = SamplingParams(7, temperature=0.5, top_p=0.9, top_k=3, stop=("a", "b"))
        generator = OpenAIGenerator(server.url, "tiny", api="completions", extra={"best_of": 1})
        generated = generator.generate(["Who?"], params, [2**40 + 5])
    assert (generated[0].text, generated[0].finish) == ("yes", "eos")
    assert (generated[0].tokens, generated[0].prompt_tokens) == (1, 10)
    assert server.requests == [
        (
            "/v1/completions",
            {
                "model": "tiny",
                "prompt": "Who?",
                "max_tokens": 7,
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 3,
                "stop": ["a", "b"],
                "seed": 5,
                "best_of": 1,
            },
        )
    ]


def test_greedy_requests_hold_nothing_that_a_strict_server_does_not_know() -> None:
    with model_server(lambda body: "yes") as server:
        OpenAIGenerator(server.url, "tiny").generate([CHAT], SamplingParams(4, None, 0.0, stop=()))
    expected = {"model": "tiny", "messages": CHAT, "max_tokens": 4, "temperature": 0.0}
    assert server.requests == [("/v1/chat/completions", expected)]


def test_answers_come_in_the_order_of_the_inputs_and_at_once() -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    def say(body: dict[str, Any]) -> str:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05 if body["prompt"] == "0" else 0.02)
        with lock:
            at_once -= 1
        return f"re {body['prompt']}"

    with model_server(say) as server:
        generated = ask(server.url, [str(i) for i in range(12)], concurrency=4)
    assert [one.text for one in generated] == [f"re {i}" for i in range(12)]
    assert 2 <= most <= 4


def test_each_input_may_have_its_own_budget() -> None:
    with model_server(lambda body: str(body["max_tokens"])) as server:
        params = [SamplingParams(n, temperature=0.0) for n in (3, 9)]
        assert [one.text for one in ask(server.url, ["a", "b"], params)] == ["3", "9"]
        with pytest.raises(ValueError, match="one for each input, got 2 for 1"):
            ask(server.url, ["a"], params)


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (completion("<search> q", "length"), "<search> q", "length"),
        (completion("<search> q", stop_reason="</search>"), "<search> q</search>", "stop"),
        (completion("<search> q", matched_stop="</search>"), "<search> q</search>", "stop"),
        (completion("q</search>", stop_reason="</search>"), "q</search>", "stop"),
        (completion("q</search>\n"), "q</search>\n", "stop"),
        (completion("done", matched_stop=151645), "done", "eos"),
        (completion("done", stop_reason=None), "done", "eos"),
    ],
)
def test_the_stop_string_stands_behind_a_turn_that_it_ended(
    reply: dict[str, Any], text: str, finish: str
) -> None:
    with model_server(lambda body: json.loads(json.dumps(reply))) as server:
        for api in ("completions", "chat"):
            generated = ask(server.url, ["Q"], api=api)[0]
            assert (generated.text, generated.finish) == (text, finish)


def test_vllm_is_asked_for_token_ids_and_stop_strings() -> None:
    def say(body: dict[str, Any]) -> dict[str, Any]:
        assert body["return_token_ids"] is True
        assert body["include_stop_str_in_output"] is True
        return completion("a b", token_ids=[4, 5])

    with model_server(say) as server:
        generated = ask(server.url, ["Q"], dialect="vllm")[0]
    assert generated.token_ids == (4, 5)


def test_a_message_that_has_begun_is_continued_as_the_server_can() -> None:
    begun = [*CHAT, {"role": "assistant", "content": "So"}]
    with model_server(lambda body: "yes") as server:
        for dialect in ("openai", "vllm", "sglang"):
            ask(server.url, [begun], api="chat", dialect=dialect)
    plain, vllm, sglang = (body for _, body in server.requests)
    assert plain["messages"] == [*begun, {"role": "user", "content": GO_ON}]
    assert "continue_final_message" not in plain
    assert vllm["messages"] == sglang["messages"] == begun
    assert vllm["continue_final_message"] is True
    assert vllm["add_generation_prompt"] is False
    assert sglang["continue_final_message"] is True


def test_a_tokenizer_renders_chats_for_completions_and_counts(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    tiny.tokenizer().save_pretrained(folder)
    begun = [*CHAT, {"role": "assistant", "content": "So"}]
    with model_server(lambda body: "yes") as server:
        generator = OpenAIGenerator(server.url, "tiny", "completions", tokenizer=str(folder))
        generator.generate([CHAT, begun], SHORT)
        with pytest.raises(ValueError, match="chat messages must go to api='chat'"):
            ask(server.url, [CHAT])
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert {body["prompt"] for _, body in server.requests} == {text, text + "So"}
    assert generator.count("<search>ab") == 3
    assert OpenAIGenerator(server.url, "tiny").count("ab") is None


def test_the_key_comes_from_the_argument_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys: list[str | None] = []

    def raw(handler: Any) -> None:
        keys.append(handler.headers.get("Authorization"))
        data = json.dumps(completion("yes")).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    with model_server(lambda body: (200, raw)) as server:
        monkeypatch.delenv(OPENAI_KEY_VARIABLE, raising=False)
        ask(server.url, ["Q"])
        ask(server.url, ["Q"], api_key="given")
        monkeypatch.setenv(OPENAI_KEY_VARIABLE, "from-env")
        ask(server.url, ["Q"])
    assert keys == [None, "Bearer given", "Bearer from-env"]


def test_an_error_500_and_garbage_are_asked_again() -> None:
    replies: list[Any] = [(500, {"error": "x"}), (200, b"<html>"), (200, {"choices": []}), "yes"]
    with model_server(lambda body: replies.pop(0)) as server:
        assert ask(server.url, ["Q"], retry_window=20.0)[0].text == "yes"
    assert not replies


def test_a_stall_is_given_up_and_asked_again() -> None:
    stalls = [True]

    def say(body: dict[str, Any]) -> str:
        if stalls:
            stalls.pop()
            time.sleep(0.6)
        return "yes"

    with model_server(say) as server:
        assert ask(server.url, ["Q"], timeout=0.2, retry_window=5.0)[0].text == "yes"


def test_a_server_that_stalls_for_good_is_named() -> None:
    with (
        model_server(lambda body: time.sleep(0.5) or "late") as server,
        pytest.raises(ModelUnavailable, match=rf"{server.url}.*no answer within 0.1 s"),
    ):
        ask(server.url, ["Q"], timeout=0.1, retry_window=0.3)


def test_a_dead_server_is_named_with_the_way_out() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ModelUnavailable, match=r"'tiny' at .*refused.* run the same command"):
            ask(url, ["Q", "R"], retry_window=0.5)
        assert time.monotonic() - began < 5


def test_garbage_for_ever_is_quoted() -> None:
    with (
        model_server(lambda body: (200, b"<html>")) as server,
        pytest.raises(ModelUnavailable, match="must be a completion, got '<html>'"),
    ):
        ask(server.url, ["Q"], retry_window=0.3)


def test_a_wrong_model_is_told_without_retries() -> None:
    with model_server(lambda body: "yes") as server:
        generator = OpenAIGenerator(server.url, "big", retry_window=30.0)
        with pytest.raises(ModelUnavailable, match=r"`big` does not exist.*check the url") as one:
            generator.generate([CHAT], SHORT)
        assert len(server.requests) == 1
        assert "refused the first request: " in str(one.value)
        with pytest.raises(ModelUnavailable, match="refused all of the first 2 requests: "):
            generator.generate([CHAT, CHAT], SHORT)


def test_what_fails_for_one_input_is_its_own_error() -> None:
    def say(body: dict[str, Any]) -> Any:
        if body["prompt"] == "long":
            return 400, {"error": "too long"}
        return "yes" if body["prompt"] == "good" else (500, {"error": "bad luck"})

    with model_server(say) as server:
        generator = OpenAIGenerator(server.url, "tiny", "completions", retry_window=0.3)
        good, long, unlucky = generator.generate(["good", "long", "bad"], SHORT)
        assert (good.text, good.error) == ("yes", None)
        assert (long.text, long.finish) == ("", "error")
        assert "400" in (long.error or "")
        assert "too long" in (long.error or "")
        assert "bad luck" in (unlucky.error or "")
        # The server is known to serve: a refusal alone is the input's fault, a failure is not.
        assert generator.generate(["long"], SHORT)[0].error is not None
        with pytest.raises(ModelUnavailable):
            generator.generate(["bad"], SHORT)


def test_urls_share_the_load_and_a_dead_one_is_left_out() -> None:
    with model_server(lambda body: "one") as one, model_server(lambda body: "two") as two:
        texts = [g.text for g in ask([one.url, two.url], ["Q"] * 8, concurrency=2)]
        assert {"one", "two"} == set(texts)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
            texts = [g.text for g in ask([dead, two.url], ["Q"] * 4, concurrency=2)]
        assert texts == ["two"] * 4


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1", "http://h:1/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("https://h/openai/v2/completions", "https://h/openai/v2"),
    ],
)
def test_a_url_may_be_given_with_or_without_its_route(given: str, kept: str) -> None:
    assert OpenAIGenerator(given, "m").urls == [kept]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "h:1"}, "must start with http"),
        ({"url": []}, "one server or several"),
        ({"url": ["http://h", "http://h/"]}, "different ones"),
        ({"api": "responses"}, "api must be chat or completions"),
        ({"dialect": "tgi"}, "dialect must be one of openai, vllm, sglang"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout": 0.0}, "timeout positive"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenAIGenerator(**{"url": "http://h", "model": "m", **options})

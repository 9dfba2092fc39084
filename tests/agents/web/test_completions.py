"""What is asked of a rollout server, what it answers, and what either side refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("urllib3")

from doubles.fake_retrieval import post
from doubles.rollout_servers import PARAMS, PROMPTS, SEEDS, completion, engine, reply, served, stub
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.web.app import BackgroundRolloutServer
from research_rl.agents.web.client import RefusedRequestError, completion_request, parse_completion
from research_rl.envs.web.client import TransientError


def test_a_request_names_everything_that_shapes_the_sampling(policy: LMPolicy) -> None:
    with stub(lambda body: (200, completion(body))) as server:
        engine(policy, server.url).run(PROMPTS[:1], PARAMS, reply, SEEDS[:1])
        body = next(b for path, b in server.requests if path == "/v1/completions")
    assert body["prompt"] == PROMPTS[0]
    assert body["seed"] == SEEDS[0]
    assert body["stop"] == ["</search>"]
    assert body["include_stop_str_in_output"] is True
    assert set(body["stop_token_ids"]) == policy.eos_ids
    assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0)
    assert body["repetition_penalty"] == 1.0
    assert body["return_token_ids"] is True


def test_no_two_runs_and_no_two_versions_share_a_prefix_cache(policy: LMPolicy) -> None:
    salts = []
    with stub(lambda body: (200, completion(body))) as server:
        for _ in range(2):  # the second is another run, or the first one resumed
            remote = engine(policy, server.url)
            for version in (0, 1):
                remote.sync(version)
                seen = len(server.requests)
                remote.run(PROMPTS[:2], PARAMS, reply, SEEDS[:2])
                sent = [b for path, b in server.requests[seen:] if path == "/v1/completions"]
                assert len({body["cache_salt"] for body in sent}) == 1
                salts.append(sent[0]["cache_salt"])
            remote.close()
    assert len(set(salts)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_token_ids": [1]}, "read the prompt as it was sent"),
        ({"token_ids": None}, "must return token ids"),
        ({"token_ids": [60], "logprobs": {"token_logprobs": [-1.0]}}, "have room for 30 tokens"),
    ],
)
def test_what_a_server_must_not_do(policy: LMPolicy, change: Any, message: str) -> None:
    with (
        stub(lambda body: (200, completion(body, **change))) as server,
        pytest.raises(ValueError, match=message),
    ):
        engine(policy, server.url).run(PROMPTS[:1], PARAMS, reply, SEEDS[:1])


def test_what_is_written_behind_a_stop_is_dropped(policy: LMPolicy) -> None:
    stop = policy.tokenizer.convert_tokens_to_ids("</search>")

    def overshoot(body: Any) -> tuple[int, Any]:
        told = {"token_logprobs": [-1.0, -2.0, -3.0]}
        ids = [60, stop, 61]
        return 200, completion(body, token_ids=ids, logprobs=told, finish_reason="stop")

    with stub(overshoot) as server:
        remote = engine(policy, server.url)
        (sampled,) = remote.run(PROMPTS[:1], PARAMS, lambda rows: [None], SEEDS[:1])
    assert (sampled.response_ids, sampled.finish) == ([60, stop], "stop")
    assert sampled.logprobs == [-1.0, -2.0]


def test_a_key_is_asked_for(policy: LMPolicy, saved: Path) -> None:
    with served(saved, api_key="secret") as server:
        with pytest.raises(ValueError, match="send the server's key"):
            engine(policy, server.url).run(PROMPTS[:1], PARAMS, reply, SEEDS[:1])
        remote = engine(policy, server.url, api_key="secret")
        assert remote.run(PROMPTS[:1], PARAMS, reply, SEEDS[:1])[0].finish != "running"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "must be JSON"),
        ([1], 400, "JSON object"),
        ({"model": "other", "prompt": [5]}, 404, "does not exist"),
        ({"model": "tiny", "prompt": []}, 400, "at least one"),
        ({"model": "tiny", "prompt": [10**9]}, 400, "token ids in"),
        ({"model": "tiny", "prompt": [5.5]}, 400, "list of token ids"),
        ({"model": "tiny", "prompt": [5], "max_tokens": 10**6}, 400, "positions"),
        ({"model": "tiny", "prompt": [5], "max_tokens": 0}, 400, "at least 1"),
        ({"model": "tiny", "prompt": [5], "temperature": "hot"}, 400, "must be a number"),
        ({"model": "tiny", "prompt": [5], "top_p": 0}, 400, "top_p"),
        ({"model": "tiny", "prompt": [5], "seed": 2**63}, 400, "int64"),
        ({"model": "tiny", "prompt": [5], "n": 2}, 400, "n must be 1"),
        ({"model": "tiny", "prompt": [5], "repetion_penalty": 1.3}, 400, "got repetion_penalty"),
        ({"model": "tiny", "prompt": [5], "guided_regex": "yes|no"}, 400, "got guided_regex"),
        ({"model": "tiny", "prompt": [5], "stop": [""]}, 400, "stop must be"),
        ({"model": "tiny", "prompt": [5], "stop_token_ids": [5]}, 400, "ends of sequence"),
    ],
)
def test_requests_that_are_refused(
    server: BackgroundRolloutServer, body: Any, status: int, message: str
) -> None:
    got, told = post(f"{server.url}/v1/completions", body)
    assert got == status
    assert message in told["error"]["message"]


def test_the_server_answers_text_too(server: BackgroundRolloutServer) -> None:
    body = {"model": "tiny", "prompt": "Who?", "max_tokens": 8, "seed": 1, "stop": "</search>"}
    status, told = post(f"{server.url}/v1/completions", body)
    choice = told["choices"][0]
    assert status == 200
    assert "</search>" not in choice["text"]
    assert choice["finish_reason"] in ("stop", "length")
    assert "token_ids" not in choice


REQUEST = completion_request("m", [1, 2], PARAMS, 8, 0, 3, [9], "s")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "token_ids", "logprobs", "token_logprobs", "finish_reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=60), JSON.map(lambda x: json.dumps(x).encode())))
def test_any_answer_is_read_or_refused(data: bytes) -> None:
    try:
        sampled = parse_completion(data, REQUEST)
    except (TransientError, RefusedRequestError):
        return
    assert len(sampled.token_ids) == len(sampled.logprobs) <= 8

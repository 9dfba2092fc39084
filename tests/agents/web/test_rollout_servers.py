"""Sampling on rollout servers: equal to sampling in process, and what happens when servers fail."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from doubles import tiny
from doubles.places import ROOT
from doubles.toy_retriever import Ranked

pytest.importorskip("fastapi")
pytest.importorskip("urllib3")

from doubles.fake_retrieval import StubServer, post
from doubles.threads import Threads
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.sampling import seed_at, uniforms
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.types import ModelUnavailable, SamplingParams, Sequence
from research_rl.agents.web.app import BackgroundRolloutServer
from research_rl.agents.web.client import (
    RefusedRequestError,
    RolloutClient,
    completion_request,
    parse_completion,
)
from research_rl.agents.web.engine import ServerEngine
from research_rl.agents.web.fleet import adapter_name
from research_rl.agents.web.request_queue import Completion, RequestQueue
from research_rl.envs import Question
from research_rl.envs.protocols import PROTOCOLS
from research_rl.envs.web.client import TransientError
from research_rl.trainers.settings import find_config

PARAMS = SamplingParams(max_response_tokens=30)
OFTEN = {"<eos>": 3.0, "</search>": 4.0}
PROMPTS = [[40 + i, 41, 42] for i in range(3) for _ in range(3)]
SEEDS = list(range(100, 109))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("policy"), bias=OFTEN)


@pytest.fixture
def policy(saved: Path) -> LMPolicy:
    return LMPolicy.from_config(PolicyConfig(str(saved)))


@pytest.fixture
def server(saved: Path) -> Iterator[BackgroundRolloutServer]:
    with served(saved) as running:
        yield running


def served(folder: Path, port: int = 0, api_key: str | None = None) -> BackgroundRolloutServer:
    policy = LMPolicy.from_config(PolicyConfig(str(folder)))
    return BackgroundRolloutServer(
        RequestQueue(policy, "tiny", max_slots=8), port, api_key, Path("/")
    )


def reply(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
    """Two results of two tokens for a sequence that stops, then its end."""
    return [
        [50, 51] if s.finish == "stop" and len(s.response_ids) < 20 else None for _, s in stopped
    ]


def engine(policy: LMPolicy, *urls: str, folder: Path | None = None, **options: Any) -> Any:
    weights = "fixed" if folder is None else "reload"
    defaults: dict[str, Any] = {"weights": weights, "retry_window": 5.0, "timeout": 20.0}
    where = None if folder is None else str(folder)
    return ServerEngine(policy, list(urls), "tiny", folder=where, **{**defaults, **options})


def same(ours: list[Sequence], theirs: list[Sequence]) -> None:
    assert [s.response_ids for s in ours] == [s.response_ids for s in theirs]
    assert [(s.finish, s.loss_mask) for s in ours] == [(s.finish, s.loss_mask) for s in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)


def moved(policy: LMPolicy) -> LMPolicy:
    """The policy after what stands for an update."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable_parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**20))
def test_the_seed_of_a_later_turn_draws_what_the_rollout_would(seed: int, position: int) -> None:
    later = uniforms(torch.tensor([seed_at(seed, position)] * 3), torch.arange(3))
    assert torch.equal(later, uniforms(torch.tensor([seed] * 3), torch.arange(3) + position))


def test_equal_to_sampling_in_process(policy: LMPolicy, server: BackgroundRolloutServer) -> None:
    sampled = engine(policy, server.url).run(PROMPTS, PARAMS, reply, SEEDS)
    expected = CachedEngine(policy).run(PROMPTS, PARAMS, reply, SEEDS)
    same(sampled, expected)
    assert max(len(s.versions) for s in sampled) > 1, "no sequence went on behind a stop"
    assert "eos" in {s.finish for s in sampled}
    assert server.queue.runs < sum(len(s.versions) for s in sampled), "no turns ran together"


@pytest.mark.parametrize("name", ["search_r1", "r1_searcher", "o2", "hermes"])
def test_rollouts_of_every_kind_of_dialect(
    name: str, policy: LMPolicy, server: BackgroundRolloutServer
) -> None:
    protocol = PROTOCOLS[name]
    env = gym.make_vec(
        "research_rl.envs:ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        index=Ranked(),
        top_k=1,
        prompt={"user": "{prompt}", "tools": False},
        protocol=name,
    )
    asked = [Question(str(n), f"Who is {n}?", ("x",)) for n in range(4)]
    params = SamplingParams(40)
    near = collect_rollouts(asked, env, policy, CachedEngine(policy), params, SEEDS[:4])
    far = collect_rollouts(asked, env, policy, engine(policy, server.url), params, SEEDS[:4])
    same([r.sequence for r in far], [r.sequence for r in near])
    assert [r.turns for r in far] == [r.turns for r in near]
    assert {r.protocol.name for r in far} == {protocol.name}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(12, temperature=0.0),
        SamplingParams(12, temperature=0.7, top_p=0.9, top_k=20),
        SamplingParams(12, min_new_tokens=6),
        SamplingParams(12, stop=()),
        SamplingParams(12, stop=("</search>", "ea", "<")),
    ],
)
def test_every_setting_reaches_the_server(
    policy: LMPolicy, server: BackgroundRolloutServer, params: SamplingParams
) -> None:
    sampled = engine(policy, server.url).run(PROMPTS, params, reply, SEEDS)
    same(sampled, CachedEngine(policy).run(PROMPTS, params, reply, SEEDS))


def test_stale_before_a_sync_and_equal_after_it(
    policy: LMPolicy, server: BackgroundRolloutServer, tmp_path: Path
) -> None:
    remote = engine(policy, server.url, folder=tmp_path / "weights")
    remote.sync(0)
    before = CachedEngine(policy).run(PROMPTS, PARAMS, reply, SEEDS)
    after = CachedEngine(moved(policy)).run(PROMPTS, PARAMS, reply, SEEDS)
    stale = remote.run(PROMPTS, PARAMS, reply, SEEDS)
    same(stale, before)
    assert [s.response_ids for s in stale] != [s.response_ids for s in after]
    assert {v for s in stale for v in s.versions} == {0}
    remote.sync(7)
    synced = remote.run(PROMPTS, PARAMS, reply, SEEDS)
    same(synced, after)
    assert {v for s in synced for v in s.versions} == {7}
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["weights-000007"]


def test_a_full_disk_leaves_no_half_written_weights(
    policy: LMPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LMPolicy, folder: Path) -> None:
        folder.mkdir()
        raise OSError("No space left on device")

    (tmp_path / ".weights-000002.partial").mkdir()  # of a run that was killed
    monkeypatch.setattr(LMPolicy, "save_pretrained", full)
    remote = engine(policy, "http://127.0.0.1:9", folder=tmp_path)
    with pytest.raises(OSError, match="No space left"):
        remote.sync(3)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_loaded_and_replaced(
    saved: Path, server: BackgroundRolloutServer, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    policy = LMPolicy.from_config(PolicyConfig(str(saved), lora=LoraConfig(r=4, alpha=8)))
    remote = engine(policy, server.url, folder=tmp_path, weights="lora")
    base = CachedEngine(LMPolicy.from_config(PolicyConfig(str(saved))))
    for version in (0, 1, 2):
        remote.sync(version)
        sampled = remote.run(PROMPTS, PARAMS, reply, SEEDS)
        same(sampled, CachedEngine(policy).run(PROMPTS, PARAMS, reply, SEEDS))
        moved(policy)
    of_base = base.run(PROMPTS, PARAMS, reply, SEEDS)
    assert [s.response_ids for s in sampled] != [s.response_ids for s in of_base]
    fixed = engine(policy, server.url)  # the model below the adapter is still there
    same(fixed.run(PROMPTS, PARAMS, reply, SEEDS), of_base)


def test_load_is_shared(policy: LMPolicy, saved: Path) -> None:
    with served(saved) as one, served(saved) as two:
        remote = engine(policy, one.url, two.url)
        expected = CachedEngine(policy).run(PROMPTS, PARAMS, reply, SEEDS)
        same(remote.run(PROMPTS, PARAMS, reply, SEEDS), expected)
        assert all(member.served > 0 for member in remote.fleet.members)
        assert not any(member.in_flight for member in remote.fleet.members)


def test_a_server_that_dies_is_replaced_and_comes_back_with_the_weights_of_now(
    policy: LMPolicy, saved: Path, tmp_path: Path
) -> None:
    expected = CachedEngine(moved(policy)).run(PROMPTS, PARAMS, reply, SEEDS)
    with served(saved) as stays:
        dies = served(saved).__enter__()
        remote = engine(policy, stays.url, dies.url, folder=tmp_path)
        remote.sync(3)
        calls = 0

        def dying(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
            nonlocal calls
            calls += 1
            if calls == 1:
                dies.stop()
            return reply(stopped)

        same(remote.run(PROMPTS, PARAMS, dying, SEEDS), expected)
        same(remote.run(PROMPTS, PARAMS, reply, SEEDS), expected)
        first, second = remote.fleet.members
        assert first.up
        assert not second.up
        with served(saved, dies.port):  # a new process: it knows nothing of version 3
            deadline = time.monotonic() + 10
            while not second.up and time.monotonic() < deadline:
                same(remote.run(PROMPTS[:3], PARAMS, reply, SEEDS[:3]), expected[:3])
                time.sleep(0.1)
            before = second.served
            same(remote.run(PROMPTS, PARAMS, reply, SEEDS), expected)
            assert second.served > before


def test_a_restart_between_runs_is_noticed(policy: LMPolicy, saved: Path, tmp_path: Path) -> None:
    expected = CachedEngine(moved(policy)).run(PROMPTS, PARAMS, reply, SEEDS)
    first = served(saved).__enter__()
    remote = engine(policy, first.url, folder=tmp_path)
    remote.sync(3)
    first.stop()
    with served(saved, first.port):
        remote.sync(3)
        same(remote.run(PROMPTS, PARAMS, reply, SEEDS), expected)


def test_no_server_left(policy: LMPolicy) -> None:
    remote = engine(policy, "http://127.0.0.1:9", retry_window=0.2)
    with pytest.raises(ModelUnavailable, match=r"must be left .* got none.*127\.0\.0\.1:9"):
        remote.run(PROMPTS, PARAMS, reply, SEEDS)


def test_a_wrong_model_is_named(policy: LMPolicy, server: BackgroundRolloutServer) -> None:
    remote = ServerEngine(policy, server.url, "another", weights="fixed")
    with pytest.raises(ValueError, match="serve the model 'another', but serves tiny"):
        remote.run(PROMPTS, PARAMS, reply, SEEDS)


def test_weights_of_another_shape_are_refused(
    server: BackgroundRolloutServer, tmp_path: Path
) -> None:
    remote = engine(tiny.policy(num_hidden_layers=1), server.url, folder=tmp_path)
    with pytest.raises(ValueError, match=r"take the weights in .*status 400.*model that is served"):
        remote.sync(1)


def completion(body: dict[str, Any], **changed: Any) -> dict[str, Any]:
    ids = [60] * body["max_tokens"]
    choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}
    return {"choices": [{**choice, "finish_reason": "length", **changed}]}


def stub(answer: Any) -> StubServer:
    def reply_to(path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "tiny"}]}
        return answer(body) if path == "/v1/completions" else (200, b"")

    return StubServer(reply_to)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        {"choices": []},
        {"choices": [{"token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0]}}]},
    ],
)
def test_garbage_takes_a_server_out(
    policy: LMPolicy, saved: Path, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with served(saved) as good, stub(lambda body: (200, answer)) as bad:
        remote = engine(policy, bad.url, good.url)
        expected = CachedEngine(policy).run(PROMPTS, PARAMS, reply, SEEDS)
        same(remote.run(PROMPTS, PARAMS, reply, SEEDS), expected)
    assert remote.fleet.members[0].served == 0
    assert f"{bad.url} is taken out: the answer must be a completion" in caplog.text


def test_a_server_that_hangs_is_left(policy: LMPolicy, saved: Path) -> None:
    over = threading.Event()

    def hang(body: Any) -> tuple[int, Any]:
        over.wait(30)
        return 200, b""

    with served(saved) as good, stub(hang) as bad:
        remote = engine(policy, bad.url, good.url, timeout=3.0)  # a loaded machine is slow too
        sampled = remote.run(PROMPTS[:4], PARAMS, reply, SEEDS[:4])
        over.set()
        same(sampled, CachedEngine(policy).run(PROMPTS[:4], PARAMS, reply, SEEDS[:4]))


def test_a_busy_server_is_asked_again(policy: LMPolicy) -> None:
    calls = []

    def busy(body: Any) -> tuple[int, Any]:
        calls.append(body)
        return (429, {}) if len(calls) == 1 else (200, completion(body))

    with stub(busy) as server:
        (sampled,) = engine(policy, server.url).run(PROMPTS[:1], PARAMS, reply, SEEDS[:1])
    assert len(calls) == 2
    assert calls[0] == calls[1], "another seed the second time"
    assert sampled.finish == "length"


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
    assert body["cache_salt"] == "weights-0"


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


def test_what_on_stop_raises_is_raised(policy: LMPolicy, server: BackgroundRolloutServer) -> None:
    def broken(stopped: Any) -> Any:
        raise RuntimeError("the environment broke")

    with pytest.raises(RuntimeError, match="the environment broke"):
        engine(policy, server.url).run(PROMPTS, PARAMS, broken, SEEDS)


def test_metrics_tell_a_new_server_from_the_one_before(
    policy: LMPolicy, server: BackgroundRolloutServer, saved: Path
) -> None:
    engine(policy, server.url).run(PROMPTS[:1], PARAMS, reply, SEEDS[:1])
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        text = response.read().decode()
        assert response.headers["Content-Type"].startswith("text/plain")
    turns = re.search(r"^research_rollout_turns_total (\S+)$", text, re.MULTILINE)
    runs = re.search(r"^research_rollout_runs_total (\S+)$", text, re.MULTILINE)
    assert turns is not None
    assert runs is not None
    assert float(turns[1]) >= float(runs[1]) > 0
    started = RolloutClient(server.url, 5.0, 1, None).started()
    assert started is not None
    assert started in text
    with served(saved) as another:
        assert RolloutClient(another.url, 5.0, 1, None).started() not in (None, started)


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


REQUEST = completion_request("m", [1, 2], PARAMS, 8, 0, 3, [9], 0)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": []}, "url must name one server"),
        ({"url": "localhost:8000"}, "must start with http"),
        ({"weights": "reload"}, "folder must name a folder"),
        ({"weights": "lora", "folder": "x"}, "must meet a policy with an adapter"),
        ({"weights": "magic"}, "weights must be reload, lora or fixed"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
    ],
)
def test_impossible_options_are_refused(
    policy: LMPolicy, options: dict[str, Any], message: str
) -> None:
    arguments = {"url": "http://a", "model": "tiny", "weights": "fixed", **options}
    with pytest.raises(ValueError, match=message):
        ServerEngine(policy, **arguments)


def test_a_change_of_weights_is_not_overtaken(saved: Path, tmp_path: Path) -> None:
    policy = LMPolicy.from_config(PolicyConfig(str(saved)))
    other = moved(copy.deepcopy(policy))
    other.save_pretrained(tmp_path)
    asked = Completion("tiny", tuple(PROMPTS[0]), PARAMS, 5)
    with RequestQueue(policy, "tiny", max_wait=0.05) as queue:
        before, changed = queue.submit(asked), queue.reload(str(tmp_path))
        after = queue.submit(asked)
        changed.result()
        old, new = before.result(), after.result()
    expected = CachedEngine(other).run(PROMPTS[:1], PARAMS, lambda rows: [None], [5])
    same([new], expected)
    assert old.response_ids != new.response_ids


def test_a_queue_answers_from_its_start_to_its_end(policy: LMPolicy) -> None:
    asked, threads = Completion("tiny", tuple(PROMPTS[0]), PARAMS, 5), Threads()
    queue = RequestQueue(policy, "tiny")
    with pytest.raises(RuntimeError, match="must have been started before it is asked"):
        queue.submit(asked)
    assert threads.running("request-queue") == 0
    with queue:
        assert threads.running("request-queue") == 1
        done = queue.submit(asked)
    assert done.result().finish != "running", "what waited is answered"
    assert threads.running("request-queue") == 0
    with pytest.raises(ValueError, match="it is stopping"):
        queue.submit(asked)
    RequestQueue(policy, "tiny").close()


def test_a_closed_engine_leaves_no_thread_and_can_be_used_again(
    policy: LMPolicy, server: BackgroundRolloutServer
) -> None:
    ours, threads = ("rollout", "probe"), Threads()
    remote = engine(policy, server.url, "http://127.0.0.1:9")

    def broken(stopped: Any) -> Any:
        raise RuntimeError("the environment broke")

    sampled = remote.run(PROMPTS, PARAMS, reply, SEEDS)
    assert threads.running("rollout") == 0
    with pytest.raises(RuntimeError, match="the environment broke"):
        remote.run(PROMPTS, PARAMS, broken, SEEDS)
    assert threads.running("probe") > 0, "nobody looks at the server that is down"
    remote.close()
    assert threads.running(*ours) == 0
    same(remote.run(PROMPTS, PARAMS, reply, SEEDS), sampled)
    remote.close()
    assert threads.running(*ours) == 0


def test_the_shipped_config_and_the_page_name_model_and_adapter_apart() -> None:
    config = yaml.safe_load(Path(find_config("engine/servers_lora")).read_text(encoding="utf-8"))
    model = config["model"]["engine"]["init_args"]["model"]
    page = (ROOT / "docs" / "rollout-servers.md").read_text(encoding="utf-8")
    served = set(re.findall(r"--served-model-name (\S+)", page))

    assert served == {model}, "what the page serves is what the config asks for"
    assert adapter_name(model) not in served

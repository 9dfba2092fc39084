"""Rollout servers that die, hang, answer garbage or are busy: what the engine makes of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny

pytest.importorskip("fastapi")
pytest.importorskip("urllib3")


from doubles.rollout_servers import (
    PARAMS,
    PROMPTS,
    SEEDS,
    completion,
    engine,
    moved,
    reply,
    same,
    served,
    stub,
)

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import ModelUnavailable, Sequence
from research_rl.agents.web.app import BackgroundRolloutServer
from research_rl.agents.web.engine import ServerEngine


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

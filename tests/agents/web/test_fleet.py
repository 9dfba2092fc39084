"""What servers say to new weights and to long prompts, and what the user is told of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny

pytest.importorskip("urllib3")

from doubles.fake_retrieval import StubServer

from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import ModelUnavailable, SamplingParams
from research_rl.agents.web import fleet
from research_rl.agents.web.engine import ServerEngine
from research_rl.agents.web.fleet import adapter_name

FORGETFUL = {"error": {"message": "Invalid repository ID or local directory: '<path>'."}}
"""How vLLM says that a folder is not there: without its name."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def policy(saved: Path) -> LMPolicy:
    return LMPolicy.from_config(PolicyConfig(str(saved)))


class Stub(StubServer):
    """A server of vLLM's routes that says ``takes`` to new weights, and writes one token a turn.

    Args:
        takes: status and body, for each time that it is given weights; the last one stays.
        room: its ``--max-model-len``.
    """

    def __init__(self, *takes: tuple[int, Any], room: int | None = None) -> None:
        self.takes, self.given = list(takes) or [(200, {})], 0
        card: dict[str, Any] = {"id": "tiny", "max_model_len": room}
        adapter = {"id": adapter_name("tiny"), "parent": "tiny", "max_model_len": None}

        def answer(path: str, body: Any) -> tuple[int, Any]:
            if path in ("/collective_rpc", "/v1/load_lora_adapter"):
                self.given += 1
                return self.takes[min(self.given, len(self.takes)) - 1]
            if path == "/v1/models":
                return 200, {"data": [card, adapter]}
            if path == "/v1/completions":
                told = {"token_logprobs": [-1.0]}
                choice = {"token_ids": [60], "logprobs": told, "finish_reason": "stop"}
                return 200, {"choices": [choice]}
            return 200, b""

        super().__init__(answer)


def engine(policy: LMPolicy, *servers: Stub, folder: Path, **options: Any) -> ServerEngine:
    given: dict[str, Any] = {"retry_window": 60.0, "timeout": 20.0, **options}
    return ServerEngine(policy, [s.url for s in servers], "tiny", folder=str(folder), **given)


def run(remote: ServerEngine, budget: int = 8) -> None:
    remote.run([[40, 41, 42]], SamplingParams(budget), lambda rows: [None] * len(rows), [1])


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("weights", ["reload", "lora"])
def test_a_folder_that_servers_cannot_read_is_told_at_once(
    policy: LMPolicy, saved: Path, tmp_path: Path, status: int, weights: str
) -> None:
    if weights == "lora":
        policy = LMPolicy.from_config(PolicyConfig(str(saved), lora=LoraConfig(r=2, alpha=2)))
    with Stub((status, FORGETFUL)) as server:
        remote = engine(policy, server, folder=tmp_path / "weights", weights=weights)
        with pytest.raises(ValueError, match=r"take the weights in .*weights-000000") as told:
            remote.sync(0)
        assert server.given == 1, "it was asked again, and the user waited"
    assert f"{tmp_path}/weights" in str(told.value)
    assert f"status {status}, Invalid repository ID" in str(told.value)
    assert "there on the server's machine too, readable for the server's user" in str(told.value)


def test_an_adapter_that_is_not_found_is_no_lack_of_the_route(saved: Path, tmp_path: Path) -> None:
    policy = LMPolicy.from_config(PolicyConfig(str(saved), lora=LoraConfig(r=2, alpha=2)))
    missing = {"error": {"message": "Loading lora a failed: No adapter found for <path>"}}
    with Stub((404, missing)) as server:
        remote = engine(policy, server, folder=tmp_path, weights="lora")
        with pytest.raises(ValueError, match="take the weights in") as told:
            remote.sync(0)
    assert "--enable-lora" not in str(told.value)
    with Stub((404, {"detail": "Not Found"})) as server:
        remote = engine(policy, server, folder=tmp_path, weights="lora")
        with pytest.raises(ValueError, match="start vLLM with --enable-lora"):
            remote.sync(0)


def test_one_server_that_cannot_use_the_weights_is_left_out_and_named(
    policy: LMPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Stub() as good, Stub((500, FORGETFUL)) as bad:
        remote = engine(policy, good, bad, folder=tmp_path)
        with caplog.at_level(logging.WARNING):
            remote.sync(0)
        run(remote)
        assert [member.up for member in remote.fleet.members] == [True, False]
        remote.close()
    assert f"{bad.url} is taken out: {bad.url} must take the weights in {tmp_path}" in caplog.text


def test_weights_that_fail_later_may_succeed_yet(policy: LMPolicy, tmp_path: Path) -> None:
    with Stub((200, {}), (500, FORGETFUL), (200, {})) as server:
        remote = engine(policy, server, folder=tmp_path)
        remote.sync(0)
        remote.sync(1)
        assert server.given == 3
        remote.close()
    with Stub((200, {}), (500, FORGETFUL)) as server:
        remote = engine(policy, server, folder=tmp_path / "other", retry_window=0.5)
        remote.sync(0)
        with pytest.raises(ModelUnavailable, match="weights-000001"):
            remote.sync(1)
        remote.close()


def test_a_budget_beyond_the_servers_positions_is_told_before_sampling(
    policy: LMPolicy, saved: Path, tmp_path: Path
) -> None:
    said = r"fit in the rollout servers' 12 positions together, got 3 \+ 10; lower .* to 9 or less"
    with Stub(room=64) as wide, Stub(room=12) as narrow:
        remote = engine(policy, wide, narrow, folder=tmp_path)
        with pytest.raises(ValueError, match=said):
            run(remote, budget=10)
        asked = [path for server in (wide, narrow) for path, _ in server.requests]
        assert "/v1/completions" not in asked
        run(remote, budget=9)
        remote.close()
        adapted = LMPolicy.from_config(PolicyConfig(str(saved), lora=LoraConfig(r=2, alpha=2)))
        remote = engine(adapted, narrow, folder=tmp_path, weights="lora")
        with pytest.raises(ValueError, match=said):  # an adapter has the room of its model
            run(remote, budget=10)
        remote.close()


def test_the_room_is_asked_before_any_weights_are_given(policy: LMPolicy, tmp_path: Path) -> None:
    with Stub(room=12) as server, Stub() as silent:
        remote = engine(policy, server, silent, folder=tmp_path)
        assert remote.room() == 12
        assert server.given == 0
        assert engine(policy, silent, folder=tmp_path).room() is None
    assert engine(policy, server, folder=tmp_path, timeout=2.0).room() is None, "it has stopped"


def test_another_rank_asks_no_server_that_the_first_could_not_give_weights(
    policy: LMPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stub() as good, Stub((500, FORGETFUL)) as bad:
        remote = engine(policy, good, bad, folder=tmp_path / "w")
        monkeypatch.setattr(fleet, "_is_first_rank", lambda: False)
        monkeypatch.setattr(fleet, "_from_first_rank", lambda make: (None, [good.url]))
        remote.sync(1)
        up = {member.url: member.up for member in remote.fleet.members}
        remote.close()
    assert up == {good.url: True, bad.url: False}

"""What the tests of rollout servers share: what is asked, servers of a tiny model, and stubs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from doubles.fake_retrieval import StubServer

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams, Sequence
from research_rl.agents.web.app import BackgroundRolloutServer
from research_rl.agents.web.engine import ServerEngine
from research_rl.agents.web.request_queue import RequestQueue

PARAMS = SamplingParams(max_response_tokens=30)
PROMPTS = [[40 + i, 41, 42] for i in range(3) for _ in range(3)]
SEEDS = list(range(100, 109))


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

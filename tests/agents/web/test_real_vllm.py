"""Sampling on a real vLLM against sampling in process. It runs where one is named.

RESEARCH_VLLM=URL[,URL] names servers of one model under one name, RESEARCH_REAL_MODEL=FOLDER the
Hugging Face folder that they were started on; they must see this machine's temporary folder.
docs/rollout-servers.md has the command that starts one. Adapters need ``--enable-lora``.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams, Sequence
from research_rl.agents.web.client import RolloutClient
from research_rl.agents.web.engine import ServerEngine

URLS = [url for url in os.environ.get("RESEARCH_VLLM", "").split(",") if url]
FOLDER = os.environ.get("RESEARCH_REAL_MODEL", "")
pytestmark = pytest.mark.skipif(
    not (URLS and FOLDER), reason="RESEARCH_VLLM=URL[,URL] and RESEARCH_REAL_MODEL=FOLDER run it"
)
GREEDY = SamplingParams(max_response_tokens=72, temperature=0.0)
TURNS = 3
SHOTS = (
    "<search> capital of Peru </search>\n<search> author of Hamlet </search>\n"
    "<search> height of Mount Everest </search>\n<search> "
)
STARTS = ("capital of", "author of", "height of", "population of the", "birthplace of Albert")
GAP = 1e-3
"""Largest difference of two log-probs, in nats, of one token in float32."""


@pytest.fixture(scope="module")
def name() -> str:
    """Of the model, as the servers know it."""
    return next(iter(RolloutClient(URLS[0], 30.0, 1, None).models()))


@pytest.fixture
def policy() -> LMPolicy:
    return LMPolicy.from_config(PolicyConfig(FOLDER, dtype="float32"))


@pytest.fixture
def make(name: str, tmp_path: Path) -> Iterator[Callable[..., ServerEngine]]:
    """Make engines, which end with the test; the servers then have their first weights again."""
    made: list[ServerEngine] = []

    def engine(policy: LMPolicy, *urls: str, **options: Any) -> ServerEngine:
        given: dict[str, Any] = {"folder": str(tmp_path / "weights"), **options}
        made.append(ServerEngine(policy, list(urls or URLS), name, retry_window=120.0, **given))
        return made[-1]

    yield engine
    for one in made:
        one.close()
    for url in URLS:
        RolloutClient(url, 600.0, 1, None).reload(FOLDER)


def prompts(policy: LMPolicy) -> list[list[int]]:
    return [list(policy.tokenizer(SHOTS + start)["input_ids"]) for start in STARTS]


def searching(policy: LMPolicy) -> Callable[[Any], list[list[int] | None]]:
    """A result behind each of the first two searches, and the beginning of the next."""
    shown = "\n<result> It is a fact that many people know. </result>\n<search> "
    ids = list(policy.tokenizer(shown, add_special_tokens=False)["input_ids"])

    def reply(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        return [ids if s.finish == "stop" and turns(s) < TURNS else None for _, s in stopped]

    return reply


def turns(sequence: Sequence) -> int:
    """How many stretches of sampled tokens it has."""
    mask = [0, *sequence.loss_mask]
    return sum(not before and bool(now) for before, now in pairwise(mask))


def in_process(policy: LMPolicy, params: SamplingParams = GREEDY) -> list[Sequence]:
    return CachedEngine(policy).run(prompts(policy), params, searching(policy), range(5))


def on_servers(
    engine: ServerEngine, policy: LMPolicy, params: SamplingParams = GREEDY
) -> list[Sequence]:
    return engine.run(prompts(policy), params, searching(policy), range(5))


def same(served: list[Sequence], expected: list[Sequence]) -> float:
    """Demand equal tokens, and return the largest difference of their log-probs."""
    assert [s.response_ids for s in served] == [s.response_ids for s in expected]
    assert [s.loss_mask for s in served] == [s.loss_mask for s in expected]
    assert [s.finish for s in served] == [s.finish for s in expected]
    gaps = [
        (torch.tensor(a.logprobs) - torch.tensor(b.logprobs)).abs().max().item()
        for a, b in zip(served, expected, strict=True)
    ]
    assert max(gaps) <= GAP
    return max(gaps)


def moved(policy: LMPolicy, head: bool) -> LMPolicy:
    """The policy behind what stands for an update; of its (tied) embeddings only with ``head``."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for label, weight in policy.model.named_parameters():
            if weight.requires_grad and weight.dim() == 2 and ("embed" not in label or head):
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(0.05 * weight.std() * noise)
    return policy


def test_greedy_turns_with_searches_are_those_of_the_engine_in_process(
    policy: LMPolicy, make: Callable[..., ServerEngine]
) -> None:
    expected = in_process(policy)
    assert max(map(turns, expected)) == TURNS, "nothing searched twice"
    engine = make(policy, weights="fixed", folder=None)
    same(on_servers(engine, policy), expected)
    room = engine.room()
    assert room is not None
    with pytest.raises(ValueError, match=f"the rollout servers' {room} positions together"):
        on_servers(engine, policy, SamplingParams(max_response_tokens=room))


def test_a_seed_is_sampled_alike_twice_and_scored_as_in_process(
    policy: LMPolicy, make: Callable[..., ServerEngine]
) -> None:
    params = SamplingParams(max_response_tokens=24, temperature=0.7, top_k=20)
    engine = make(policy, weights="fixed", folder=None)
    once, twice = on_servers(engine, policy, params), on_servers(engine, policy, params)
    assert [s.response_ids for s in once] == [s.response_ids for s in twice]
    sampled = [(s.prompt_ids, s.response_ids, s.logprobs) for s in once if turns(s) == 1]
    for prompt, response, told in sampled:
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + response])).logits[0]
        logits = logits[len(prompt) - 1 : -1].float() / params.temperature
        least = logits.topk(params.top_k).values[:, -1:]
        scored = logits.masked_fill(logits < least, -torch.inf).log_softmax(-1)
        chosen = scored[torch.arange(len(response)), torch.tensor(response)]
        assert torch.allclose(chosen, torch.tensor(told), atol=GAP)
    assert sampled


@pytest.mark.parametrize("head", [False, True])
def test_new_weights_are_sampled_from(
    policy: LMPolicy, make: Callable[..., ServerEngine], head: bool
) -> None:
    engine = make(policy, weights="reload")
    engine.sync(0)
    before = in_process(policy)
    same(on_servers(engine, policy), before)
    after = in_process(moved(policy, head))
    assert [s.response_ids for s in after] != [s.response_ids for s in before]
    engine.sync(1)
    served = on_servers(engine, policy)
    if head and [s.response_ids for s in served] != [s.response_ids for s in after]:
        pytest.xfail(
            "the server said 200 and kept its former head: vLLM's CPU build does where input and "
            "output embeddings are tied (its log: ParallelLMHead: Failed to load weights)"
        )
    same(served, after)


def test_adapters_are_sampled_from(name: str, make: Callable[..., ServerEngine]) -> None:
    lora = LoraConfig(r=8, alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    policy = LMPolicy.from_config(PolicyConfig(FOLDER, dtype="float32", lora=lora))
    engine = make(policy, weights="lora")
    try:
        engine.sync(0)
    except ValueError as error:
        if "--enable-lora" not in str(error):
            raise
        pytest.skip(str(error))
    before = in_process(policy)
    same(on_servers(engine, policy), before)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable_parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    after = in_process(policy)
    assert [s.response_ids for s in after] != [s.response_ids for s in before]
    engine.sync(1)
    same(on_servers(engine, policy), after)


@pytest.mark.parametrize("weights", ["reload", "lora"])
def test_a_folder_that_is_not_there_is_named(name: str, tmp_path: Path, weights: str) -> None:
    client, gone = RolloutClient(URLS[0], 600.0, 1, None), str(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"elsewhere.*readable for the server's user"):
        client.reload(gone) if weights == "reload" else client.load_adapter("gone", gone)
    client.check_health()
    client.reload(FOLDER)


def test_a_server_that_is_cut_off_and_back_is_given_the_weights_again(
    policy: LMPolicy, make: Callable[..., ServerEngine]
) -> None:
    expected = in_process(policy)
    with Line(URLS[-1]) as line:
        engine = make(policy, URLS[0], line.url, weights="reload")
        engine.sync(0)
        first, second = engine.fleet.members
        same(on_servers(engine, policy), expected)
        line.cut()
        same(on_servers(engine, policy), expected)
        assert first.up
        assert not second.up
        line.mend()
        deadline = time.monotonic() + 120
        while not second.up and time.monotonic() < deadline:
            same(on_servers(engine, policy), expected)
        served = second.served
        same(on_servers(engine, policy), expected)
        assert second.served > served


class Line:
    """A line to a server that can be cut, as if its machine had died, and mended."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._to = (host, int(port.partition("/")[0]))
        self._open: list[socket.socket] = []
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Break off all connections and refuse others."""
        for one in [self._bound, *self._open]:
            closed(one)
        self._open.clear()

    def mend(self) -> None:
        """Take connections again, under the same url."""
        self._listen(self._port)

    def _listen(self, port: int) -> None:
        self._bound = socket.create_server(("127.0.0.1", port))
        self._port = int(self._bound.getsockname()[1])
        threading.Thread(target=self._accept, args=(self._bound,), daemon=True).start()

    def _accept(self, bound: socket.socket) -> None:
        while True:
            try:
                near, _ = bound.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=pump, args=(source, target), daemon=True).start()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Send on what comes until either end is closed."""
    try:
        while part := source.recv(65536):
            target.sendall(part)
    except OSError:
        return
    finally:
        closed(source)
        closed(target)


def closed(one: socket.socket) -> None:
    """Close a socket, so that whoever waits for it wakes."""
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
    finally:
        one.close()

"""What one client of a policy server cannot do to the others, and a web page cannot do at all."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny

pytest.importorskip("fastapi")

from doubles.fake_retrieval import post
from safetensors.torch import load_file, save_file

from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams
from research_rl.agents.web.app import MAX_BODY_BYTES, BackgroundRolloutServer
from research_rl.agents.web.request_body import LONGEST_STOP, MAX_STOPS
from research_rl.agents.web.request_queue import Completion, RequestQueue

ASK = {"model": "tiny", "prompt": [5, 6], "max_tokens": 4, "seed": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("policy"))


def queue_of(folder: Path) -> RequestQueue:
    return RequestQueue(LMPolicy.from_config(PolicyConfig(str(folder))), "tiny", max_slots=8)


@pytest.fixture
def server(saved: Path) -> Iterator[BackgroundRolloutServer]:
    with BackgroundRolloutServer(queue_of(saved)) as running:
        yield running


def said(told: Any) -> str:
    return str(told["error"]["message"])


@pytest.mark.parametrize("stop", [["x" * (LONGEST_STOP + 1)], ["x"] * (MAX_STOPS + 1)])
def test_stop_strings_are_few_and_short(stop: list[str], server: BackgroundRolloutServer) -> None:
    status, told = post(f"{server.url}/v1/completions", {**ASK, "stop": stop})
    assert status == 400
    assert "stop must be at most" in said(told)
    assert len(said(told)) < 300


def test_a_large_body_is_not_read(server: BackgroundRolloutServer) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.putrequest("POST", "/v1/completions")
    client.putheader("Content-Type", "application/json")
    client.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
    client.endheaders()  # the answer comes before any of the body is sent
    answer = client.getresponse()
    assert answer.status == 413
    assert "at most" in said(json.loads(answer.read()))
    client.close()


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(
    server: BackgroundRolloutServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(server.queue.policy.tokenizer), "__call__", None)
    longest = server.queue.policy.max_length
    assert longest is not None
    for prompt in ("x" * (longest * 16), [5] * (longest + 1)):
        status, told = post(f"{server.url}/v1/completions", {**ASK, "prompt": prompt})
        assert status == 400
        assert f"must fit in the model's {longest} positions" in said(told)


def test_a_prompt_is_tokenised_beside_the_answers(
    server: BackgroundRolloutServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, begun, go_on = type(server.queue.policy.tokenizer), threading.Event(), threading.Event()
    encode = kind.__call__

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", slow)
    answers: list[int] = []
    body = {**ASK, "prompt": "Who?"}
    asking = threading.Thread(
        target=lambda: answers.append(post(f"{server.url}/v1/completions", body)[0])
    )
    asking.start()
    assert begun.wait(60)
    assert post(f"{server.url}/v1/models", None, method="GET")[0] == 200
    assert not answers
    go_on.set()
    asking.join()
    assert answers == [200]


def never_ends(queue: RequestQueue) -> None:
    """Have nothing but the budget end a turn."""
    with torch.no_grad():
        head = queue.policy.model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
        head.bias[list(queue.policy.eos_ids)] = -100.0


def asking(server: BackgroundRolloutServer, **more: Any) -> http.client.HTTPConnection:
    """A client that has asked and waits."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps({**ASK, **more})
    client.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    return client


def test_a_client_that_hangs_up_holds_up_nobody(saved: Path) -> None:
    """Over a real connection: the turn under way and those that wait are given up."""
    queue = queue_of(saved)
    never_ends(queue)
    with BackgroundRolloutServer(queue) as server:
        long = queue.policy.max_length
        assert long is not None
        left = [asking(server, max_tokens=long - 2) for _ in range(3)]
        while not queue._running:
            time.sleep(0.005)
        for client in left:
            client.close()
        other = asking(server, max_tokens=3, temperature=0.5)
        assert other.getresponse().status == 200
        while queue._running or queue._waiting:
            time.sleep(0.005)
        assert not queue._given_up
        assert queue.runs <= 3


def test_only_so_many_requests_wait(saved: Path) -> None:
    policy = LMPolicy.from_config(PolicyConfig(str(saved)))
    queue = RequestQueue(policy, "tiny", max_slots=8, max_waiting=2)
    never_ends(queue)
    with BackgroundRolloutServer(queue) as server:
        under_way = asking(server, max_tokens=(policy.max_length or 0) - 2)
        while not queue._running:
            time.sleep(0.005)
        waiting = [asking(server, temperature=0.5 + i / 10) for i in range(2)]
        while len(queue._waiting) < 2:
            time.sleep(0.005)
        status, told = post(f"{server.url}/v1/completions", {**ASK, "temperature": 0.9})
        assert status == 429
        assert "2 requests wait" in said(told)
        waiting[0].close()  # makes room
        while len(queue._waiting) > 1:
            time.sleep(0.005)
        under_way.close()
        assert post(f"{server.url}/v1/completions", {**ASK, "temperature": 0.9})[0] == 200


def test_it_stops_within_its_grace_under_load(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research_rl.agents.web.app.GRACE", 1)
    queue = queue_of(saved)
    never_ends(queue)
    with BackgroundRolloutServer(queue) as server:
        long = (queue.policy.max_length or 0) - 2
        clients = [asking(server, max_tokens=long, temperature=1 + i / 100) for i in range(20)]
        while not queue._running:
            time.sleep(0.005)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    for client in clients:
        client.close()


def test_what_cannot_be_loaded_is_the_requests_fault(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with BackgroundRolloutServer(queue_of(saved), weights_below=tmp_path) as server:
        rpc = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}
        status, told = post(f"{server.url}/collective_rpc", rpc)
        assert status == 400
        assert said(told).startswith("weights_path must name a folder")
        lora = {"lora_name": "a", "lora_path": str(tmp_path)}
        status, told = post(f"{server.url}/v1/load_lora_adapter", lora)
        assert status == 400
        assert said(told).startswith("lora_path must name a folder")
        assert post(f"{server.url}/v1/completions", ASK)[0] == 200


@pytest.mark.parametrize(
    ("change", "said_of"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, "must be LoRA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "theirs"}, "must be plain LoRA"),
        ({"init_lora_weights": "corda"}, "must be plain LoRA"),
    ],
)
def test_an_adapter_may_not_have_peft_import_or_read_more(
    change: dict[str, Any], said_of: str, saved: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with queue_of(saved) as queue, pytest.raises(ValueError, match=said_of):
        queue.load_adapter("a", str(tmp_path)).result(120)


def test_a_request_that_nobody_waits_for_is_given_up(saved: Path) -> None:
    with queue_of(saved) as queue:
        never_ends(queue)
        long = Completion("tiny", (5, 6), SamplingParams(3000), 1)
        under_way, waiting = queue.submit(long), queue.submit(long)
        other = queue.submit(Completion("tiny", (5, 6), SamplingParams(3, temperature=0.5), 1))
        while not under_way.running():
            assert not under_way.done()
        queue.drop(under_way)
        queue.drop(waiting)
        assert len(under_way.result(120).response_ids) < 3000
        assert len(other.result(120).response_ids) <= 3


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_page_cannot_post(kind: str, server: BackgroundRolloutServer) -> None:
    headers = {"Content-Type": kind}
    status, told = post(f"{server.url}/v1/completions", json.dumps(ASK).encode(), headers)
    assert status == 415
    assert "application/json" in said(told)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert post(f"{server.url}/v1/completions", ASK, headers)[0] == 200


def test_a_page_under_another_name_gets_nothing(saved: Path) -> None:
    with BackgroundRolloutServer(queue_of(saved)) as server:
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
            status, told = post(f"{server.url}/v1/completions", ASK, {"Host": host})
            assert status == 403
            assert "Host must be" in said(told)
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
            assert post(f"{server.url}/v1/completions", ASK, {"Host": host})[0] == 200
    with BackgroundRolloutServer(queue_of(saved), api_key="k") as server:
        headers = {"Host": "proxy.example", "Authorization": "Bearer k"}
        assert post(f"{server.url}/v1/completions", ASK, headers)[0] == 200


def test_weights_are_loaded_with_a_key_or_below_a_folder(saved: Path, tmp_path: Path) -> None:
    def load(server: BackgroundRolloutServer, folder: Path, **headers: str) -> tuple[int, str]:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        status, told = post(f"{server.url}/collective_rpc", body, headers)
        return status, "" if status == 200 else said(told)

    with BackgroundRolloutServer(queue_of(saved)) as server:
        status, message = load(server, saved)
        assert (status, "--weights-below" in message) == (403, True)
        body = {"lora_name": "a", "lora_path": str(saved)}
        assert post(f"{server.url}/v1/load_lora_adapter", body)[0] == 403
    with BackgroundRolloutServer(queue_of(saved), weights_below=saved) as server:
        assert load(server, saved)[0] == 200
        (tmp_path / "inside").symlink_to(saved.parent)
        for outside in (saved.parent, saved / "..", tmp_path / "inside"):
            status, message = load(server, outside)
            assert (status, "must be a folder below" in message) == (403, True)
    with BackgroundRolloutServer(queue_of(saved), api_key="k") as server:
        assert load(server, saved)[0] == 401
        assert load(server, saved, Authorization="Bearer k")[0] == 200


def weights_of(policy: LMPolicy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def test_weights_that_lack_a_tensor_are_refused_and_the_former_stay(
    saved: Path, tmp_path: Path
) -> None:
    other = tiny.checkpoint(tmp_path / "other", seed=7)
    file = other / "model.safetensors"
    state = load_file(file)
    lost = next(name for name in state if "mlp" in name)
    save_file({k: v for k, v in state.items() if k != lost}, file, {"format": "pt"})
    with queue_of(saved) as queue:
        before = weights_of(queue.policy)
        with pytest.raises(ValueError, match=f"1 too few, such as {lost}"):
            queue.reload(str(other)).result(120)
        after = weights_of(queue.policy)
        assert all(torch.equal(before[name], after[name]) for name in before)
        save_file(state, file, {"format": "pt"})
        queue.reload(str(other)).result(120)
        assert torch.equal(queue.policy.model.state_dict()[lost], state[lost])


def test_an_adapter_that_fails_leaves_the_former(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")

    def adapter(name: str, rank: int) -> Path:
        made = LMPolicy.from_config(PolicyConfig(str(saved), lora=LoraConfig(r=rank)))
        with torch.no_grad():
            for weight in made.model.parameters():
                if weight.requires_grad:
                    weight.fill_(0.05)
        made.model.save_pretrained(tmp_path / name)
        return tmp_path / name

    def torn(folder: Path) -> Path:
        file = folder / "adapter_model.safetensors"
        state = load_file(file)
        save_file(dict(list(state.items())[1:]), file)
        return folder

    def sampled(queue: RequestQueue, name: str) -> list[float]:
        asked = Completion(name, (5, 6), SamplingParams(4), 1)
        return queue.submit(asked).result(120).logprobs

    def same(values: list[float]) -> Any:
        return pytest.approx(values, abs=1e-4)

    good, bad = adapter("good", 2), torn(adapter("bad", 4))
    with queue_of(saved) as queue:
        of_base = sampled(queue, "tiny")
        with pytest.raises(ValueError, match="must hold the weights"):
            queue.load_adapter("a", str(bad)).result(120)
        assert queue.models == ["tiny"]
        assert sampled(queue, "tiny") == same(of_base)
        queue.load_adapter("a", str(good)).result(120)
        of_good = sampled(queue, "a")
        assert of_good != same(of_base)
        with pytest.raises(ValueError, match="must hold the weights"):
            queue.load_adapter("a", str(bad)).result(120)
        assert sampled(queue, "a") == same(of_good)
        assert sampled(queue, "tiny") == same(of_base)

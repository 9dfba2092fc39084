"""Sampling on rollout servers: equal to sampling in process, before and after new weights."""

from __future__ import annotations

import copy
import re
import urllib.request
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from doubles.places import ROOT
from doubles.toy_retriever import Ranked

pytest.importorskip("fastapi")
pytest.importorskip("urllib3")

from doubles.rollout_servers import PARAMS, PROMPTS, SEEDS, engine, moved, reply, same, served
from doubles.threads import Threads
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.sampling import seed_at, uniforms
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.types import SamplingParams
from research_rl.agents.web.app import BackgroundRolloutServer
from research_rl.agents.web.client import RolloutClient
from research_rl.agents.web.engine import ServerEngine
from research_rl.agents.web.fleet import adapter_name
from research_rl.agents.web.request_queue import Completion, RequestQueue
from research_rl.envs import Question
from research_rl.envs.protocols import PROTOCOLS
from research_rl.trainers.settings import find_config


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

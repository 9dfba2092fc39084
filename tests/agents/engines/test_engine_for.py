"""Where no engine is configured the one that fits the model is taken, and the log says which."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny
from doubles.families import CACHES
from doubles.sampled import BIAS, PARAMS, assert_same, prompts_of, searcher
from doubles.tiny_run import write_config

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.engines.streaming import StreamingEngine
from research_rl.agents.engines.turnwise import TurnwiseEngine, engine_for
from research_rl.agents.methods.generators import LocalGenerator
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams
from research_rl.agents.web.request_queue import Completion, RequestQueue
from research_rl.envs.system import commands
from research_rl.trainers.cli import dispatch


def policy_of(family: str) -> LMPolicy:
    return tiny.policy(family, bias=BIAS, **CACHES.get(family, {}))


@pytest.mark.parametrize(
    ("family", "kind", "said"),
    [
        ("llama", CachedEngine, "sampling with CachedEngine, which fits LlamaForCausalLM"),
        ("bloom", TurnwiseEngine, "sampling with TurnwiseEngine, turn by turn: the cached engine"),
        ("mamba", TurnwiseEngine, "sampling with TurnwiseEngine, turn by turn: the cached engine"),
    ],
)
def test_the_engine_that_fits_is_taken_and_named(
    family: str, kind: type, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = policy_of(family)
    with caplog.at_level(logging.INFO):
        engine = engine_for(policy, 3)
    assert type(engine) is kind
    assert engine.max_slots == 3
    (line,) = (m for m in caplog.messages if m.startswith("sampling with"))
    assert said in line
    assert type(LocalGenerator(policy).engine) is kind


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_server_keeps_budgets_with_either_engine(family: str) -> None:
    policy = tiny.policy(family)
    with RequestQueue(policy, "tiny") as queue:
        asked = [
            Completion("tiny", (1, 2, 3), SamplingParams(max_response_tokens=n), n) for n in (2, 5)
        ]
        lengths = [len(f.result().response_ids) for f in [queue.submit(one) for one in asked]]
    assert lengths[0] <= 2
    assert lengths[1] <= 5


@pytest.mark.parametrize("family", ["llama", "mamba", "rwkv", "lfm2"])
def test_what_is_told_token_by_token_is_what_the_plain_engine_samples(family: str) -> None:
    policy = policy_of(family)
    prompts = prompts_of(policy, 2)
    theirs = ReferenceEngine(policy).run(prompts, PARAMS, searcher(policy), range(2))
    told: list[str] = []
    engine = StreamingEngine(policy, lambda writer, text: told.append(text))
    assert_same(engine.run(prompts, PARAMS, searcher(policy), range(2)), theirs)
    assert told


def test_a_configured_engine_that_refuses_the_model_ends_a_fit_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    policy_of("bloom").save_pretrained(tmp_path / "bloom")
    fit: list[Any] = ["fit", "--config", config, "--model.policy.model", tmp_path / "bloom"]
    fit += ["--model.env.prompt", "Ask {prompt}"]
    monkeypatch.setattr(sys, "argv", ["research", *map(str, fit)])
    with pytest.raises(SystemExit) as stop:
        dispatch.main()
    assert stop.value.code == commands.FAILED
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert "use TurnwiseEngine for this model" in line
    advised = ["--model.engine", "TurnwiseEngine", "--overwrite", "--trainer.max_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["research", *map(str, [*fit, *advised])])
    dispatch.main()
    assert (tmp_path / "runs/tiny/checkpoints/last.ckpt").is_file()

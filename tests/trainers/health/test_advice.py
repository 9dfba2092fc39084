"""What the signal check and the guard advise can be done as they say it, and has its effect."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import yaml

from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.algorithms.policy_gradient import Correction
from research_rl.trainers.cli import dispatch
from research_rl.trainers.health.check import is_corrected
from research_rl.trainers.health.remedies import kl_coef
from research_rl.trainers.health.signal import Tally, verdicts

OPTION = re.compile(r"model\.[a-z_.]*[a-z_]")
VALUES: dict[str, Any] = {
    "model.sampling.max_response_tokens": 99,
    "model.sampling.max_result_tokens": 33,
    "model.env.top_k": 1,
    "model.env.prompt": "Ask {prompt}",
    "model.policy.freeze_embeddings": True,
    "model.policy.lora": {"r": 4},
    "model.engine.dtype": "float16",
    "model.algorithm.correction.kind": "truncate",
}
"""For each option that a remedy names, a value of the kind that it advises."""


def remedies() -> list[str]:
    """The remedies of all verdicts there are."""
    counts = Tally(rollouts=8, groups=2, out_of_tokens=8, searches=4, found_nothing=4)
    counts.errors["no answer"] = 8
    counts.rewards[0.0] = 8
    found = verdicts(counts, {"mismatch_5pct": 0.9, "grad_norm": 0.0})
    assert {one.name for one in found} == {
        "no_difference",
        "same_format_error",
        "empty_searches",
        "out_of_tokens",
        "mismatch",
        "zero_gradient",
    }
    return [one.remedy for one in found]


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    """The config that the options make, on one of the shipped configs."""
    config = ["--config", "research_7b", "--config", "engine/cached"]
    monkeypatch.setattr(sys, "argv", ["research", "fit", *config, *args, "--print_config"])
    with pytest.raises(SystemExit) as stop:
        dispatch.main()
    assert not stop.value.code, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def option(config: Any, name: str) -> Any:
    for part in name.split("."):
        inner = config.get("init_args", config)
        config = inner[part] if part in inner else config[part]
    return config


def test_every_option_that_a_remedy_names_can_be_set_so() -> None:
    named = {name for remedy in remedies() for name in OPTION.findall(remedy)}
    assert named == VALUES.keys()


@pytest.mark.parametrize("name", VALUES)
def test_an_option_that_is_advised_is_taken(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    value = VALUES[name]
    found = option(
        printed(
            monkeypatch,
            capsys,
            f"--{name}",
            json.dumps(value) if isinstance(value, dict) else str(value),
        ),
        name,
    )
    assert found["r"] == 4 if name.endswith("lora") else found == value


def test_the_correction_that_is_advised_is_one() -> None:
    class Module:
        algorithm = GRPO(correction=Correction(kind="truncate"))

    assert is_corrected(Module())


def test_the_kl_that_the_guard_asks_for_satisfies_it() -> None:
    assert kl_coef(GRPO(kl_coef=0.001)) == 0.001
    assert GRPO(kl_coef=0.001).needs_reference

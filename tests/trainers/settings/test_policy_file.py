"""What is written beside exported weights is how the policy is asked again."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny

from research_rl.agents import SamplingParams
from research_rl.envs.protocols import PROTOCOLS, RESEARCH, get_prompt
from research_rl.envs.protocols.dialects import SearchR1
from research_rl.trainers.checkpoint import save_policy
from research_rl.trainers.settings import (
    POLICY_FILE,
    EnvConfig,
    PromptParts,
    UsageError,
    asked_as,
    protocol_of,
    read_policy_file,
    with_trained_prompt,
    write_policy_file,
)


class Numbered(SearchR1):
    """Search-R1's tags with another first number.

    Args:
        first: number of the first document.
    """

    def __init__(self, first: int = 0) -> None:
        self.first = first


def again(folder: Path, **env: Any) -> dict[str, Any]:
    write_policy_file(folder, EnvConfig(**env))
    return read_policy_file(folder)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_dialect_is_kept_by_its_name(name: str, tmp_path: Path) -> None:
    told = again(tmp_path, protocol=name, prompt="instruct", top_k=2, max_searches=3)
    assert told == {
        **{"protocol": PROTOCOLS[name], "prompt": "instruct"},
        **{"top_k": 2, "max_searches": 3, "max_chars": 32768},
    }
    assert again(tmp_path, protocol=PROTOCOLS[name])["protocol"] == PROTOCOLS[name]
    assert json.loads((tmp_path / POLICY_FILE).read_text())["protocol"] == name


def test_a_protocol_of_ones_own_is_kept_with_its_arguments(tmp_path: Path) -> None:
    write_policy_file(tmp_path, EnvConfig(protocol=Numbered(4)))
    spec = json.loads((tmp_path / POLICY_FILE).read_text())["protocol"]
    assert spec["class_path"] == f"{__name__}.Numbered"
    assert spec["init_args"] == {"first": 4}
    assert protocol_of(spec) == Numbered(4)


def test_a_prompts_file_is_kept_in_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Q: {prompt}\nA:\n")
    for name in ("research", "search_r1", "r1_searcher", "hermes"):
        before = get_prompt(str(file), name)
        told = again(tmp_path, protocol=name, prompt=str(file))
        assert get_prompt(told["prompt"], name) == before
    chat = tmp_path / "prompt.yaml"
    chat.write_text("{system: S, user: 'Q {prompt}'}")
    for name in ("research", "hermes", "recall"):
        before = get_prompt(str(chat), name)
        assert (
            get_prompt(again(tmp_path, protocol=name, prompt=str(chat))["prompt"], name) == before
        )
    parts = PromptParts(about="the manuals of Acme", chat=True)
    assert again(tmp_path, prompt=parts)["prompt"] == {"about": "the manuals of Acme", "chat": True}
    with caplog.at_level(logging.WARNING):
        assert "prompt" not in again(tmp_path, prompt="gone.txt")
    assert "the prompt 'gone.txt' is not kept beside the policy" in caplog.text


def test_the_prompt_of_the_training_goes_over_a_file_that_was_changed_since(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, config = tmp_path / "prompt.txt", tmp_path / "config.yaml"
    file.write_text("Q: {prompt}\nA:\n")
    config.write_text("{}")
    told: dict[str, Any] = {"prompt": str(file), "protocol": RESEARCH, "top_k": 2}
    os.utime(config, (1, 1))
    for _ in range(2):
        assert with_trained_prompt(told, tmp_path, config) == told
    assert caplog.text.count("was changed after") == 1, "nobody knows what it said"
    os.utime(file, (0, 0))
    (tmp_path / "policy").mkdir()
    write_policy_file(tmp_path / "policy", told)
    caplog.clear()
    assert with_trained_prompt(told, tmp_path, config) == told
    assert not caplog.messages
    for text in ("Question: {prompt}", None):
        file.unlink() if text is None else file.write_text(text)
        found = with_trained_prompt(told, tmp_path, config)
        assert found == {**told, "prompt": "Q: {prompt}\nA:"}
    assert caplog.text.count("is no longer that of the training") == 1


def test_a_later_fit_that_ended_without_an_export_keeps_its_own_prompt(tmp_path: Path) -> None:
    config, old = tmp_path / "config.yaml", {"prompt": "OLD {prompt}", "protocol": RESEARCH}
    (tmp_path / "policy").mkdir()
    write_policy_file(tmp_path / "policy", old)
    config.write_text("model: {}")
    file = tmp_path / "p.txt"
    file.write_text("NEW {prompt}")
    for prompt in ("NEW {prompt}", {"user": "NEW {prompt}"}):
        told = {**old, "prompt": prompt}
        assert with_trained_prompt(told, tmp_path, config) == told, "a checkpoint is of this fit"
        assert with_trained_prompt(told, tmp_path, config, exported=True) == old
    told = {**old, "prompt": str(file)}
    assert with_trained_prompt(told, tmp_path, config)["prompt"] == "OLD {prompt}"
    os.utime(tmp_path / "policy" / POLICY_FILE, (1, 1))
    assert with_trained_prompt(told, tmp_path, config) == told


def test_a_section_of_an_earlier_version_means_research(tmp_path: Path) -> None:
    assert asked_as({"top_k": 5, "max_searches": None}, tmp_path / "config.yaml") == {
        "protocol": RESEARCH,
        "top_k": 5,
    }
    assert read_policy_file(tmp_path) == {}
    assert protocol_of("o2") == PROTOCOLS["o2"]


def test_the_file_is_part_of_the_export(tmp_path: Path) -> None:
    save_policy(tiny.policy(), tmp_path / "with", {"protocol": "hermes", "prompt": "base"})
    assert read_policy_file(tmp_path / "with")["protocol"] == PROTOCOLS["hermes"]
    save_policy(tiny.policy(), tmp_path / "without")
    assert not (tmp_path / "without" / POLICY_FILE).exists()


def test_limits_of_tokens_go_along(tmp_path: Path) -> None:
    sampled = SamplingParams(1536, 400)
    write_policy_file(tmp_path, EnvConfig(max_searches=4), sampled)
    limits = {"max_response_tokens": 1536, "max_result_tokens": 400}
    assert limits.items() <= read_policy_file(tmp_path).items()
    section = {"max_response_tokens": 1536, "max_result_tokens": None, "temperature": 1.0}
    told = asked_as({}, tmp_path / "config.yaml", section)
    assert told == {"protocol": RESEARCH, "max_response_tokens": 1536}
    write_policy_file(tmp_path, EnvConfig(max_chars=900), SamplingParams(stop=("</search>", "#")))
    told = read_policy_file(tmp_path)
    assert (told["stop"], told["max_chars"]) == (("</search>", "#"), 900)
    with pytest.raises(UsageError, match=r"stop in .* must be a list of texts, got '#'"):
        asked_as({}, tmp_path / "config.yaml", {"stop": "#"})
    with pytest.raises(UsageError, match=r"max_result_tokens in .* must be a number, got 'many'"):
        asked_as({}, tmp_path / "config.yaml", {"max_result_tokens": "many"})

"""Models in several dialects on one card: what each is asked in, kept and shown."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles import tiny
from doubles.evaluated import question_file
from doubles.served_model import model_server

from research_rl.agents import ReSearch
from research_rl.envs.protocols import PROTOCOLS, RESEARCH
from research_rl.trainers.evaluate.command import main
from research_rl.trainers.evaluate.config import Method, ModelConfig, make_parser, read_config
from research_rl.trainers.evaluate.models import other_limits, spoken, spoken_by
from research_rl.trainers.settings import PromptParts, write_policy_file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def page_of(folder: Path) -> Any:
    text = (folder / "report.html").read_text("utf-8")
    found = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', text)
    assert found is not None
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def test_one_card_over_checkpoints_in_two_dialects(tmp_path: Path) -> None:
    """The shipped example, with two tiny models in place of those of the Hub."""
    out, questions = tmp_path / "out", question_file(tmp_path, 3)
    for name in ("first", "second"):
        tiny.checkpoint(tmp_path / name)
    args = ["--config", "evaluate/checkpoints", "--out", str(out), "--resamples", "100"]
    args += ["--index", '{"class_path": "doubles.toy_world.Echo"}', "--only+=dgpo"]
    args += ["--only+=zero-shot", "--models.dgpo.model", str(tmp_path / "first")]
    args += ["--models.zero-shot.model", str(tmp_path / "second"), "--max_failed_batches", "9"]
    args += ["--datasets.questions.questions", str(questions)]
    small = {"class_path": "ReSearch", "init_args": {"max_response_tokens": 24}}
    args += ["--methods", json.dumps({"ReSearch": small})]
    main(args)
    rows = rows_of(out)
    assert [row.get("protocol") for row in rows] == ["search_r1"] * 3 + ["hermes"] * 3
    assert all(row["error"] is None for row in rows)
    card = (out / "card.md").read_text("utf-8")
    assert "ReSearch (dgpo)" in card
    assert "ReSearch (zero-shot)" in card
    kept = json.loads((out / "settings.json").read_text("utf-8"))["cells"]
    told = {json.loads(cell)[1]: made["spoken"] for cell, made in kept.items()}
    assert told["dgpo"] == {"protocol": ["search_r1", {}], "prompt": "instruct"}
    assert page_of(out)["systems"] == ["ReSearch (dgpo)", "ReSearch (zero-shot)"]
    main(args)
    assert len(rows_of(out)) == 6
    with pytest.raises(ValueError, match=r"spoken\.protocol was .*search_r1.* is .*o2"):
        main([*args, "--models.dgpo.protocol", "o2"])


def test_the_page_shows_a_dialects_parts(tmp_path: Path) -> None:
    hermes = PROTOCOLS["hermes"]

    def say(body: dict[str, Any]) -> str:
        if body["messages"][-1]["role"] == "tool":
            return hermes.answer("Owner 0", thought="so")
        return hermes.search("house", thought="who")

    config = {
        "datasets": {"houses": {"questions": str(question_file(tmp_path, 1))}},
        "models": {"served": {"protocol": "hermes"}},
        "methods": {"ReSearch": "ReSearch"},
        "index": {"class_path": "doubles.toy_world.Echo"},
        "out": str(tmp_path / "out"),
        "resamples": 100,
    }
    with model_server(say) as server:
        model = {"class_path": "OpenAIGenerator", "init_args": {"url": server.url, "model": "tiny"}}
        config["models"]["served"]["generator"] = model  # type: ignore[index]
        main(["--config", json.dumps(config)])
    row = rows_of(tmp_path / "out")[0]
    assert (row["prediction"], row["em"], row["format_error"]) == ("Owner 0", 1.0, None)
    steps = page_of(tmp_path / "out")["questions"][0]["r"]["0"]["s"]
    assert [kind for kind, _ in steps] == ["think", "search", "result", "think", "answer"]
    assert "tool_response" not in steps[2][1]


def test_what_a_model_is_asked_in(tmp_path: Path) -> None:
    run, policy = tmp_path / "run", tmp_path / "policy"
    run.mkdir()
    policy.mkdir()
    env: dict[str, Any] = {"prompt": "instruct", "top_k": 2}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"env": env}}))
    assert spoken(ModelConfig(run=str(run))) == {"protocol": RESEARCH, "prompt": "instruct"}
    env |= {"protocol": "o2"}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"env": env}}))
    assert spoken(ModelConfig(run=str(run)))["protocol"] == PROTOCOLS["o2"]
    named = ModelConfig(run=str(run), protocol="recall", prompt=PromptParts(system="S"))
    assert spoken(named)["protocol"] == PROTOCOLS["recall"]
    assert spoken(named)["prompt"]["system"] == "S"

    assert spoken(ModelConfig(model=str(policy))) == {}
    assert spoken(ModelConfig(model=str(policy)), "o2") == {"protocol": PROTOCOLS["o2"]}
    write_policy_file(policy, {"protocol": "search_r1", "prompt": {"user": "Q: {prompt}"}})
    told = {"protocol": PROTOCOLS["search_r1"], "prompt": {"user": "Q: {prompt}"}}
    assert spoken(ModelConfig(model=str(policy)), "o2") == told
    method = Method("ReSearch", ReSearch, {"prompt": "base"})
    assert spoken_by(method, ModelConfig(model=str(policy))) == {"protocol": told["protocol"]}
    from research_rl.agents import NaiveRAG

    assert spoken_by(Method("RAG", NaiveRAG, {}), ModelConfig(model=str(policy))) == {}


def test_other_limits_than_those_of_the_training_are_told(tmp_path: Path) -> None:
    model = {"env": {"top_k": 2, "max_searches": 4}, "sampling": {"max_response_tokens": 150}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    run = ModelConfig(run=str(tmp_path))
    same: dict[str, Any] = {"max_searches": 4, "max_response_tokens": 150}
    assert other_limits(Method("ReSearch", ReSearch, same), run, top_k=2) is None
    assert other_limits(Method("ReSearch", ReSearch, {}), run, top_k=5) == (
        "top_k 5 in place of 2, max_searches None in place of 4, "
        "max_response_tokens 8192 in place of 150"
    )
    from research_rl.agents import NaiveRAG

    assert other_limits(Method("RAG", NaiveRAG, {}), run, top_k=5) is None
    assert other_limits(Method("ReSearch", ReSearch, {}), ModelConfig(model="m"), top_k=5) is None


def test_stop_strings_and_characters_of_the_training_are_told_too(tmp_path: Path) -> None:
    model = {"env": {"max_chars": 900}, "sampling": {"stop": ["</search>", "#"]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    run = ModelConfig(run=str(tmp_path))
    said = other_limits(Method("ReSearch", ReSearch, {}), run, top_k=5)
    assert said is not None
    assert "max_chars 32768 in place of 900" in said
    assert "in place of ('</search>', '#')" in said
    same: dict[str, Any] = {"max_chars": 900, "stop": ["</search>", "#"]}
    assert other_limits(Method("ReSearch", ReSearch, same), run, top_k=5) is None

    class Own(ReSearch):
        def __init__(self, generator: Any, protocol: str = "research") -> None:
            super().__init__(generator, protocol=protocol)

    said = other_limits(Method("own", Own, {}), run, top_k=5)
    assert said is not None
    assert said.count("(which this method cannot take)") == 2
    model = {"env": {"max_chars": 32768}, "sampling": {"stop": list(RESEARCH.stops)}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    assert other_limits(Method("own", Own, {}), run, top_k=5) is None


def test_a_run_is_evaluated_with_the_prompt_of_its_training(tmp_path: Path) -> None:
    file, policy = tmp_path / "prompt.txt", tmp_path / "policy"
    policy.mkdir()
    file.write_text("Q: {prompt}")
    env = {"prompt": str(file)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"env": env}}))
    write_policy_file(policy, env)
    run = ModelConfig(run=str(tmp_path))
    assert spoken(run)["prompt"] == str(file), "as it was"
    file.write_text("Another: {prompt}")
    assert spoken(run)["prompt"] == "Q: {prompt}"


def test_a_misspelt_protocol_costs_seconds(tmp_path: Path) -> None:
    from research_rl.trainers.evaluate.config import check_config

    parser = make_parser()
    for option in ("--protocol", "--models.dgpo.protocol"):
        parsed = parser.parse_args(["--config", "evaluate/checkpoints", option, "search-r1"])
        config, _ = read_config(parser, parsed)
        with pytest.raises(ValueError, match=r"protocol: .*did you mean 'search_r1'"):
            check_config(config)

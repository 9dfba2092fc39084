"""Every config that ships parses, says what the paper says, and merges with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from research_rl.envs.protocols import PROTOCOLS
from research_rl.trainers.cli.fit import ResearchCLI, run
from research_rl.trainers.evaluate.config import make_parser
from research_rl.trainers.settings.shipped import CONFIGS, EVALUATION, find_config, shipped_configs

PAPER = ["research_7b", "research_7b_instruct", "research_32b_instruct"]
WHOLE = ["quickstart", *PAPER]
OF_THE_QUICKSTART = ["self_correction", "three_hops"]
NOT_FIT = {*shipped_configs(EVALUATION), *shipped_configs("method")}
PARTS = sorted(set(shipped_configs()) - set(WHOLE) - NOT_FIT)


class Parse(ResearchCLI):
    """Stops before anything is built."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Build(ResearchCLI):
    """Stops before anything is run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["research"])
    monkeypatch.chdir(tmp_path)


def parse(*args: str) -> dict[str, Any]:
    """The whole configuration of ``research fit`` with these arguments, as plain values."""
    cli = run(["fit", *args], Parse)
    return dict(yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))["fit"])


def test_each_kind_ships() -> None:
    assert set(WHOLE) <= set(shipped_configs())
    assert {"algorithm/grpo", "retriever/offline", "retriever/e5", "retriever/bge"} <= set(PARTS)


@pytest.mark.parametrize("name", [*WHOLE, *PARTS])
def test_parses(name: str) -> None:
    text = Path(find_config(name)).read_text(encoding="utf-8")
    assert text.startswith("#"), "a config begins by saying what it is"
    given = yaml.safe_load(text)
    behind = "quickstart" if name in OF_THE_QUICKSTART else PAPER[0]
    config = parse("--config", name) if name in WHOLE else parse("-c", behind, "-c", name)
    for section in given.keys() & {"model", "data"}:
        assert_within(given[section], config[section])


def assert_within(given: Any, config: Any) -> None:
    """What the file says arrives, whatever its defaults and short class names became."""
    if isinstance(given, dict):
        for key, value in given.items():
            assert_within(value, config[key if key in config else str(key)])
    elif isinstance(given, str) and isinstance(config, str):
        assert "${" in given or config.endswith(given)
    elif not isinstance(given, str):
        assert config == given


@pytest.mark.parametrize("name", WHOLE)
def test_builds_without_touching_a_model_or_an_index(name: str) -> None:
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    cli = run(["fit", "--config", name, *cpu], Build)
    assert Path(cli.trainer.default_root_dir).parts[-2:] == ("runs", name)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", PAPER)
def test_hyper_parameters_of_the_paper(name: str) -> None:
    config = parse("--config", name)
    model, data, trainer = config["model"], config["data"], config["trainer"]
    assert (data["batch_size"], model["updates"]["group_size"]) == (256, 5)
    assert model["updates"]["num_epochs"] * model["updates"]["num_minibatches"] == 1
    assert model["updates"]["max_grad_norm"] == 1.0
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    optimizer = model["optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["weight_decay"]) == (1e-6, 0.01)
    assert optimizer["betas"] == [0.9, 0.999]
    assert model["lr_scheduler"] is None
    algorithm = model["algorithm"]["init_args"]
    assert (algorithm["kl_coef"], algorithm["kl_estimator"]) == (0.001, "k3")
    assert (algorithm["clip_low"], algorithm["scale_by_std"]) == (0.2, True)
    sampling = model["sampling"]
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (1.0, 1.0, 0)
    assert sampling["max_response_tokens"] == 8192
    assert model["env"]["top_k"] == 5
    assert (trainer["max_epochs"], trainer["val_check_interval"]) == (2, 10)
    assert model["policy"]["gradient_checkpointing"]


def test_the_papers_configs_differ_in_model_and_prompt_only() -> None:
    configs = {name: parse("--config", name) for name in PAPER}
    for name, config in configs.items():
        assert config["model"]["policy"].pop("model").startswith("Qwen/Qwen2.5-")
        assert config["model"]["env"].pop("prompt") == (
            "instruct" if "instruct" in name else "base"
        )
        text = yaml.safe_dump(config).replace(f"runs/{name}", "runs/NAME")
        configs[name] = yaml.safe_load(text.replace(name, "NAME"))
    first, *rest = configs.values()
    assert all(config == first for config in rest)


def test_three_hops_differ_from_the_quickstart_in_what_they_say() -> None:
    before, after = parse("-c", "quickstart"), parse("-c", "quickstart", "-c", "three_hops")
    warm = after["trainer"]["callbacks"][0]["init_args"]["config"]
    assert (warm["good_share"], warm["steps"]) == (0.3, 700)
    shorter = before["trainer"]["callbacks"][0]["init_args"]["config"]
    warm |= {name: shorter[name] for name in ("good_share", "steps")}
    text = yaml.safe_dump(after["trainer"]["callbacks"]).replace("three_hops", "quickstart")
    assert yaml.safe_load(text) == before["trainer"]["callbacks"]
    assert after["data"]["world"]["eval_hops"] == [1, 2, 3]
    after["model"]["algorithm"]["init_args"]["scale_by_std"] = True
    rate = after["model"]["lr_scheduler"]["init_args"]
    assert rate["total"] == after["trainer"]["max_steps"]
    rate["total"] = before["trainer"]["max_steps"]
    text = yaml.safe_dump(after["model"]).replace("three_hops", "quickstart")
    assert yaml.safe_load(text) == before["model"]


def test_parts_merge_in_order() -> None:
    config = parse("-c", PAPER[0], "-c", "algorithm/grpo", "-c", "retriever/bge", "--data.seed=5")
    assert config["model"]["env"]["index"] == "indexes/bge"
    assert config["model"]["policy"]["model"] == "Qwen/Qwen2.5-7B"
    assert (config["data"]["seed"], config["model"]["seed"]) == (5, 0)


@pytest.mark.parametrize("name", WHOLE)
def test_references_follow_an_override(name: str) -> None:
    config = parse(
        "--config", name, "--trainer.default_root_dir", "runs/mine", "--seed_everything=9"
    )
    text = yaml.safe_dump(config)
    assert f"runs/{name}" not in text
    assert "runs/mine" in text
    assert "${" not in text
    assert config["model"]["seed"] == config["data"]["seed"] == 9


def test_configs_name_our_classes_by_their_bare_names() -> None:
    texts = {
        name: Path(find_config(name)).read_text(encoding="utf-8") for name in shipped_configs()
    }
    assert not [name for name, text in texts.items() if "class_path: research_rl." in text]


def test_an_evaluation_knows_retrievers_by_their_bare_names() -> None:
    index = "{class_path: RemoteRetriever, init_args: {url: 'http://127.0.0.1:9'}}"
    parsed = make_parser().parse_args(["--config", "evaluate/served", "--index", index])
    assert parsed.index.class_path == "research_rl.envs.retrieval.RemoteRetriever"


def test_configs_hold_no_stranger() -> None:
    files = (p for p in CONFIGS.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    others = {p.name for p in files if p.suffix != ".yaml"}
    assert others == {"__init__.py", "py.typed"}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_dialect_has_a_config_with_its_own_number_of_passages(name: str) -> None:
    env = parse("-c", "quickstart", "-c", f"protocol/{name}")["model"]["env"]
    assert (env["protocol"], env["top_k"]) == (name, PROTOCOLS[name].top_k)
    evaluation = make_parser().parse_args(["-c", "evaluate/served", "-c", f"protocol/{name}"])
    assert (evaluation.protocol, evaluation.top_k) == (name, PROTOCOLS[name].top_k)


def test_every_config_of_a_protocol_is_a_dialect() -> None:
    assert {f"protocol/{name}" for name in PROTOCOLS} == set(shipped_configs("protocol"))

"""A folder of somebody else holds data: nothing in it runs code or reads secrets unasked.

Each test plants a payload that would touch a file, opens the folder as a user would, and looks
whether the file is there.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from doubles.fake_retrieval import StubServer
from doubles.tiny_run import write_config

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.envs.retrieval.web.client import RemoteRetriever
from research_rl.envs.system import TRUST
from research_rl.envs.types import RetrieverUnavailable, Reward
from research_rl.trainers.checkpoint.files import (
    AtomicCheckpointIO,
    find_checkpoint,
    load_state,
)
from research_rl.trainers.checkpoint.shards import UnsafeCheckpointError, check_shards
from research_rl.trainers.cli import dispatch as cli
from research_rl.trainers.lightning_internals import sharded_metadata
from research_rl.trainers.recorder.records import Record, Records
from research_rl.trainers.settings.trust import (
    TrustError,
    careful,
    distrust,
    read_run_config,
)

RAN = "ran"
"""The file that a payload touches."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_config(folder)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's run: a config, a checkpoint, an exported policy; the current folder is beside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUST, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "theirs"
    shutil.copytree(model / "policy", folder / "policy")
    config = yaml.safe_load((model / "tiny.yaml").read_text())
    config["trainer"]["default_root_dir"] = str(folder)
    config["model"]["engine"] = {"class_path": "research_rl.agents.engines.CachedEngine"}
    config["model"]["env"] = {"index": None, "top_k": 2, "max_searches": 2, "prompt": "base"}
    config["data"] |= dict.fromkeys(("train", "val", "test"), str(model / "questions.jsonl"))
    config["model"]["policy"]["model"] = str(folder / "policy")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    policy = LMPolicy.from_config(PolicyConfig(str(folder / "policy")))
    (folder / "checkpoints").mkdir()
    weights = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    torch.save({"state_dict": weights, "iteration": 1}, folder / "checkpoints" / "best.ckpt")
    return folder


def change(run: Path, **values: Any) -> None:
    """Set options of the run's config, ``model__policy__revision="main"`` for instance."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in values.items():
        *places, last = name.split("__")
        section = config
        for place in places:
            section = section.setdefault(place, {})
        section[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    cli.main()


def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *args: Any) -> str:
    """Run a command that must end with status 2, and return what it says."""
    with pytest.raises(SystemExit) as ended:
        research(monkeypatch, *args)
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    return said


def fit_like(command: str) -> Callable[[Path], list[Any]]:
    return lambda run: [command, "--config", run / "config.yaml", "--ckpt_path", "best"]


def export(run: Path) -> list[Any]:
    return ["export", "--ckpt", run / "checkpoints" / "best.ckpt", "--out", "out"]


def evaluate(run: Path) -> list[Any]:
    best = run / "checkpoints" / "best.ckpt"
    evaluation = {
        "models": {"theirs": {"run": str(run), "checkpoint": str(best)}},
        "datasets": {"world": {"world": {"num_questions": 1, "num_people": 60}}},
        "methods": {"ReSearch": "ReSearch"},
        "out": "evaluation",
    }
    Path("mine.yaml").write_text(yaml.safe_dump(evaluation))
    return ["evaluate", "--config", "mine.yaml"]


def replay(run: Path) -> list[Any]:
    record = Record(
        question={"id": "q", "text": "Who?", "answers": ["I"], "metadata": {}},
        seed=0,
        prompt_ids=[1, 2],
        response_ids=[3],
        sampled=[1],
        logprobs=[-0.1],
        turns=["nonsense"],
        queries=[],
        passage_ids=[],
        reward=vars(Reward(0.0)),
        advantage=0.5,
        finish_reason="no_answer",
    )
    Records(run / "records").write(0, 0, [record])
    return ["replay", run]


def ask(run: Path) -> list[Any]:
    return ["ask", "Who?", "--run", run]


def plan(run: Path) -> list[Any]:
    return ["plan", "--config", run / "config.yaml"]


FITS = {name: fit_like(name) for name in ("fit", "validate", "test", "predict")}
CLASSES = {**FITS, "plan": plan, "replay": replay}
"""Those that make classes which a run's config names."""
MODELS = {**CLASSES, "export": export, "evaluate": evaluate}
"""Those that load the model as a run's config says."""
every = pytest.mark.parametrize("opener", MODELS.values(), ids=MODELS)


def plant_model_code(run: Path) -> None:
    """Make the run's policy a model that brings a module, which touches the file at its import."""
    policy = run / "policy"
    config = yaml.safe_load((policy / "config.json").read_text())
    config["model_type"] = "theirs"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (policy / "config.json").write_text(yaml.safe_dump(config, default_flow_style=True))
    payload = f"import pathlib\npathlib.Path({str(run.parent / RAN)!r}).touch()\n"
    (policy / "code.py").write_text(payload)


@every
def test_model_code_that_a_run_asks_for_is_not_run(
    opener: Callable[[Path], list[Any]],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plant_model_code(run)
    change(run, model__policy__trust_remote_code=True)
    said = refused(monkeypatch, capfd, *opener(run))
    assert "--trust" in said
    assert "trust_remote_code" in said
    assert not Path(RAN).exists()


@pytest.mark.parametrize("opener", CLASSES.values(), ids=CLASSES)
def test_a_class_that_a_run_names_is_not_imported(
    opener: Callable[[Path], list[Any]],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("payload.py").write_text(f"import pathlib\npathlib.Path({RAN!r}).touch()\nclass E: ...\n")
    change(run, model__engine={"class_path": "payload.E"})
    said = refused(monkeypatch, capfd, *opener(run))
    assert "payload.E" in said
    assert "--trust" in said
    assert not Path(RAN).exists()


@pytest.mark.parametrize("opener", [*MODELS.values(), ask], ids=[*MODELS, "ask"])
def test_a_run_reads_no_variable(
    opener: Callable[[Path], list[Any]],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    change(run, model__env__index="http://127.0.0.1:9/${oc.env:OPENAI_API_KEY}")
    said = refused(monkeypatch, capfd, *opener(run))
    assert "oc.env:OPENAI_API_KEY" in said
    assert "--trust" in said
    assert "secret" not in said


def test_the_command_line_grants_what_a_run_asks_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("granted.py").write_text(
        "from research_rl.trainers.algorithms import GRPO\nclass Mine(GRPO):\n    '''As GRPO.'''\n"
    )
    change(run, model__algorithm={"class_path": "granted.Mine"})
    assert "granted.Mine" in refused(monkeypatch, capfd, *plan(run))
    research(monkeypatch, *plan(run), "--trust")
    assert "memory" in capfd.readouterr().out.lower()


def test_a_class_on_the_command_line_needs_no_trust(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("named.py").write_text(
        "from research_rl.trainers.algorithms import GRPO\nclass Mine(GRPO):\n    '''As GRPO.'''\n"
    )
    research(monkeypatch, *plan(run), "--model.algorithm", "named.Mine")
    assert "memory" in capfd.readouterr().out.lower()


def test_a_file_beside_the_config_is_no_way_around(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("payload.py").write_text(f"import pathlib\npathlib.Path({RAN!r}).touch()\nclass E: ...\n")
    (run / "engine.yaml").write_text("class_path: payload.E\n")
    change(run, model__engine=str(run / "engine.yaml"))
    refused(monkeypatch, capfd, *plan(run))
    (run / "base.yaml").write_text("model: {engine: {class_path: payload.E}}\n")
    change(run, base="base.yaml", model__engine=None)
    refused(monkeypatch, capfd, *plan(run))
    assert not Path(RAN).exists()


def test_ones_own_run_goes_on_as_before(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(run, model__env__index=None, trainer__max_steps=1)
    (run / "checkpoints" / "best.ckpt").unlink()
    research(monkeypatch, *FITS["fit"](run)[:3])
    change(run, trainer__max_steps=2)
    research(monkeypatch, *FITS["fit"](run)[:3], "--ckpt_path", "last")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "a${ oc.env:HOME}", "${${x}.env:HOME}", "${oc.decode:'1'}"]
)
def test_every_spelling_of_a_resolver_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"x": "oc", "a": [{"b": text}]}))
    with pytest.raises(TrustError, match="--trust"):
        read_run_config(file)
    file.write_text(yaml.safe_dump({"x": "oc", "y": "${x}: {z}"}))
    assert read_run_config(file)["y"] == "oc: {z}"


def test_a_key_goes_only_to_a_server_that_the_user_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The index of somebody's run is asked without the key; one on the command line gets it."""
    monkeypatch.setenv("RESEARCH_API_KEY", "secret")
    monkeypatch.setenv(TRUST, "")
    sent: list[str | None] = []

    def answer(path: str, body: Any) -> tuple[int, Any]:
        def reply(handler: Any) -> None:
            sent.append(handler.headers.get("Authorization"))
            handler.send_error(404)

        return 200, reply

    def search(url: str) -> None:
        with pytest.raises(RetrieverUnavailable):
            RemoteRetriever(url, retry_window=0.1).search(["x"], 1)

    file = tmp_path / "config.yaml"
    with StubServer(answer) as server:
        file.write_text(yaml.safe_dump({"index": server.url}))
        with careful(["ask", "--run", str(tmp_path)]):
            distrust(file)
            search(server.url)
        assert sent
        assert set(sent) == {None}
        assert server.url in caplog.text
        assert "--trust" in caplog.text
        sent.clear()
        with careful(["ask", "--run", str(tmp_path), "--index", f"{server.url}/retrieve"]):
            distrust(file)
            search(server.url)
        assert set(sent) == {"Bearer secret"}
        sent.clear()
        search(server.url)  # nothing is distrusted any more
        assert set(sent) == {"Bearer secret"}


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.open, (self.file, os.O_CREAT | os.O_WRONLY)


def in_list(folder: Path, ran: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(ran)))


def in_a_shard(folder: Path, ran: Path) -> None:
    """Put the payload where the checkpoint keeps a number."""
    with (folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    content = io.BytesIO()
    torch.save(Payload(ran), content)
    (folder / "theirs.distcp").write_bytes(content.getvalue())
    for index, stored in metadata.storage_data.items():
        if index.fqn == "number":
            stored.relative_path, stored.offset = "theirs.distcp", 0
            stored.length = len(content.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def in_the_rest(folder: Path, ran: Path) -> None:
    torch.save({"callbacks": Payload(ran)}, folder / sharded_metadata())


def shards(folder: Path) -> Path:
    weights = {"state_dict": {"w": torch.arange(4.0)}, "number": 0.1}
    dcp.save(weights, checkpoint_id=folder, no_dist=True)
    torch.save({"iteration": 1}, folder / sharded_metadata())
    return folder


PLANTS = [in_list, in_a_shard, in_the_rest]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plant", PLANTS)
def test_a_checkpoint_in_shards_is_not_unpickled(
    plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    folder, ran = shards(tmp_path / "best.ckpt"), tmp_path / RAN
    check_shards(folder)
    assert torch.equal(load_state(folder)["state_dict"]["w"], torch.arange(4.0))
    plant(folder, ran)
    for opened in (check_shards, load_state, lambda path: find_checkpoint(str(path), tmp_path)):
        with pytest.raises(UnsafeCheckpointError, match="nothing of it was run"):
            opened(folder)
    assert not ran.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opener", [*FITS.values(), export, evaluate, replay])
def test_no_command_unpickles_a_checkpoint(
    opener: Callable[[Path], list[Any]],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    best = run / "checkpoints" / "best.ckpt"
    best.unlink()
    in_list(shards(best), run.parent / RAN)
    torch.save({"state": Payload(run.parent / RAN)}, run / "checkpoints" / "last.ckpt")
    said = refused(monkeypatch, capfd, *opener(run))
    assert "nothing of it was run" in said
    assert not Path(RAN).exists()


def test_a_checkpoint_of_a_url_is_not_unpickled(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save(Payload(tmp_path / RAN), content)
    server = StubServer(lambda path, body: (200, content.getvalue()))
    with server, pytest.raises(UnsafeCheckpointError, match="nothing of it was run"):
        AtomicCheckpointIO().load_checkpoint(f"{server.url}/{tmp_path.name}.ckpt")
    assert not (tmp_path / RAN).exists()

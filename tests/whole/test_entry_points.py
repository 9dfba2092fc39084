"""Every option of every command, given something of a stranger: nothing of it is run.

The options are found by looking into the parsers. A command or an option that is new is given the
same payloads; the table below must say what of it takes ``--trust``, or the first test fails.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doubles.entry_points import TRAINER, call, own_options
from doubles.payloads import HOSTILE, SECRET, run
from doubles.tiny_run import write_policy

from research_rl.envs.retrieval.index.build import build_index
from research_rl.envs.retrieval.rerank import RerankRetriever
from research_rl.envs.system import TrustError
from research_rl.trainers.checkpoint import AtomicCheckpointIO
from research_rl.trainers.checkpoint.shards import UnsafeCheckpointError
from research_rl.trainers.cli import dispatch
from research_rl.trainers.health.remedies import Snapshots

MODEL = ("model_with_code",)
INDEX = ("index_with_code",)
ALL = ("run_with_class", "run_with_environment", "run_with_resolver", "run_with_code")
RUN = (*ALL, "run_with_kernel", "run_with_protocol")
NOTHING: tuple[str, ...] = ()
AGENT: dict[str, tuple[str, ...]] = {
    **{"--run": ("run_with_resolver", "run_with_code", "run_with_protocol")},
    **{"--model": (*MODEL, "model_with_protocol"), "--index": NOTHING, "--protocol": NOTHING},
    **{"--tokenizer": MODEL, "--prompt": NOTHING, "--server": NOTHING},
}
TRUSTED: dict[str, dict[str, tuple[str, ...]]] = {
    "ask": {**AGENT, "question": NOTHING},
    "serve-agent": AGENT,
    "collect": {"--out": NOTHING, "--questions": NOTHING, "--url": NOTHING},
    "data get": {"name": NOTHING, "--out": NOTHING},
    "data convert": {"file": NOTHING, "--aliases": NOTHING, "--out": NOTHING, "--from": NOTHING},
    "data audit": {
        **{"--questions": NOTHING, "--index": INDEX, "--train": NOTHING, "--out": NOTHING},
        **{"--model": MODEL, "--server": NOTHING},
    },
    "questions make": {
        **{"--index": INDEX, "--out": NOTHING, "--questions": NOTHING, "--model": MODEL},
        **{"--url": NOTHING},
    },
    "corpus build": {"folder": NOTHING, "--out": NOTHING},
    "index build": {
        **{"--corpus": NOTHING, "--out": NOTHING, "--encoder": MODEL},
        **{"--uri": NOTHING, "--collection": NOTHING},
    },
    "index add": {"folder": INDEX, "--corpus": NOTHING},
    "index merge": {"shards": NOTHING, "--corpus": NOTHING, "--out": NOTHING},
    "index adopt": {
        **{"--faiss": NOTHING, "--corpus": NOTHING, "--encoder": MODEL, "--out": NOTHING},
    },
    "index search": {"folder": INDEX, "query": NOTHING, "--corpus": NOTHING},
    "index info": {"folder": NOTHING, "--corpus": NOTHING},
    "index tune": {"folder": NOTHING, "--corpus": NOTHING, "--questions": NOTHING},
    "index serve": {"folder": NOTHING, "--corpus": NOTHING},
    "export": {"--ckpt": ("run_with_code",), "--config": NOTHING, "--out": NOTHING},
    "serve-policy": {"model": MODEL, "--weights-below": NOTHING},
    "replay": {"run": (*RUN, "run_with_term"), "--question": NOTHING, "--against": NOTHING},
    "rescore": {"run": RUN, "--reward": NOTHING},
    "lint-reward": {"--protocol": NOTHING, "reward": NOTHING},
    "evaluate": {"--config": NOTHING, "--run": NOTHING, "--out": NOTHING, "--index": INDEX},
    **{name: {"--config": RUN, "--ckpt_path": NOTHING} for name in TRAINER},
    "plan": {},
    "page": {"run": NOTHING, "--out": NOTHING},
    "compare": {"runs": NOTHING, "--out": NOTHING},
    "runs": {"folder": NOTHING},
    "configs": {"name": NOTHING},
    "env": {},
    "schema": {"--out": NOTHING},
    "completion": {},
}
"""What of each option needs ``--trust``: the kinds of payload whose refusal must say so."""
TEXTS = {
    *("--host", "--kind", "--shard", "--type", "--memory", "--query-prefix", "--passage-prefix"),
    *("--pooling", "--device", "--revision", "--query-model", "--served-model-name"),
    *("--served_model", "--empty-query", "--ambiguous-dialect"),
}
"""Options that take a word; they are given the payloads too."""


def test_every_command_and_option_is_known_here() -> None:
    """Where this fails, say in TRUSTED what of the new option takes --trust, NOTHING perhaps."""
    found = own_options()
    assert {name.split()[0] for name in TRUSTED} == set(dispatch.COMMANDS)
    for name, options in found.items():
        untold = options - TEXTS - set(TRUSTED.get(name, {}))
        if name != "data list":
            assert name in TRUSTED, f"say in TRUSTED what research {name} does with a stranger's"
        assert not untold, f"say in TRUSTED what research {name} does with {sorted(untold)}"
        gone = set(TRUSTED.get(name, {})) - options
        assert not gone, f"research {name} has no {sorted(gone)} any more"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a model, a corpus, an index, a run."""
    folder = tmp_path_factory.mktemp("world")
    write_policy(folder / "model")
    (folder / "corpus.jsonl").write_text('{"id": "1", "contents": "Oslo\\nOslo is a city."}\n')
    (folder / "more.jsonl").write_text(
        (folder / "corpus.jsonl").read_text() + '{"id": "2", "contents": "Bergen\\nA city."}\n'
    )
    (folder / "papers").mkdir()
    (folder / "papers" / "oslo.md").write_text("# Oslo\n\nOslo is a city.\n")
    build_index(folder / "corpus.jsonl", folder / "index")
    build_index(folder / "corpus.jsonl", folder / "part", shard="0/1")
    (folder / "run").mkdir()
    run(folder / "run", folder / "none")
    (folder / "questions.jsonl").write_text(
        '{"id": "q", "question": "Who?", "golden_answers": ["I"]}\n'
    )
    return folder


def usual(name: str, world: Path) -> dict[str, list[Any]]:
    """What a command is given where nothing of a stranger is in it."""
    corpus, index, model = world / "corpus.jsonl", world / "index", world / "model"
    return {
        "ask": {"question": ["Who?"], "--model": [model], "--index": [index]},
        "collect": {"--config": [world / "run" / "config.yaml"], "--out": ["out"]},
        "serve-agent": {"--model": [model], "--index": [index], "--port": ["0"]},
        "data get": {"name": ["hotpotqa"], "--split": ["dev"], "--out": ["out"]},
        "data convert": {
            **{"file": [world / "questions.jsonl"], "--from": ["other"], "--split": ["test"]},
            "--out": ["out"],
        },
        "data audit": {
            **{"--questions": [world / "questions.jsonl"], "--index": [index]},
            **{"--out": ["out"], "--max-tokens": ["8"]},
        },
        "questions make": {"--index": [index], "--out": ["out"], "--quiet": []},
        "corpus build": {"folder": [world / "papers"], "--out": ["out.jsonl"], "--quiet": []},
        "index build": {"--corpus": [corpus], "--out": ["out"], "--quiet": []},
        "index add": {"folder": [index], "--corpus": [world / "more.jsonl"], "--quiet": []},
        "index merge": {"shards": [world / "part"], "--out": ["out"], "--quiet": []},
        "index adopt": {
            **{"--faiss": [index / "vectors.faiss"], "--corpus": [corpus], "--encoder": [model]},
            **{"--out": ["out"], "--quiet": []},
        },
        "index search": {"folder": [index], "query": ["Oslo"]},
        "index info": {"folder": [index], "--check": []},
        "index tune": {"folder": [index]},
        "index serve": {"folder": [index], "--port": ["0"]},
        "export": {"--ckpt": ["best"], "--out": ["out"]},
        "serve-policy": {"model": [model], "--port": ["0"]},
        "replay": {"run": [world / "run"]},
        "rescore": {"run": [world / "run"], "--reward": ["em"]},
        "lint-reward": {"reward": ["default"], "--limit": ["1"]},
        "page": {"run": [world / "run"], "--quick": []},
        "compare": {"runs": [world / "run"] * 2},
        "runs": {"folder": [world]},
        "schema": {"--out": ["out"]},
    }.get(name, {})


def line(name: str, option: str, value: Any, world: Path) -> list[Any]:
    """Return the command line that gives ``value`` to one option and the usual to the others."""
    given = {**usual(name, world), option: [value]}
    if name in ("ask", "serve-agent") and option == "--tokenizer":
        given |= {"--server": ["http://127.0.0.1:9"], "--model": ["x"]}
    if name == "questions make" and option == "--questions":
        given |= {"--from": ["file"]}
    if name == "compare" and option == "runs":
        given["runs"] = [value, world / "run"]
    if name in ("ask", "serve-agent") and option == "--run":
        del given["--model"]
    words = name.split()
    for key, values in sorted(given.items(), key=lambda item: item[0].startswith("-")):
        words += [key, *values] if key.startswith("-") else values
    return words


PAIRS = [
    pytest.param(
        *(name, option, kind),
        marks=() if kind in {*told, "pickled", "model_with_code"} else pytest.mark.slow,
    )
    for name, options in TRUSTED.items()
    for option, told in options.items()
    for kind in HOSTILE
    if name not in (*TRAINER, "evaluate", "plan", "schema")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "option", "kind"), PAIRS)
def test_nothing_of_a_stranger_is_run(
    name: str,
    option: str,
    kind: str,
    world: Path,
    hostile: dict[str, Path],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    theirs = hostile[kind]
    if option == "--out":  # not to be written into
        shutil.copytree(theirs, here / "there") if theirs.is_dir() else shutil.copy(theirs, "there")
        theirs = here / "there"
    if name == "export" and kind.startswith("run_"):
        theirs = theirs / "checkpoints" / "best.ckpt"
    status, said = call(monkeypatch, capfd, line(name, option, theirs, world))
    assert not hostile["ran"].exists(), said
    assert "secret" not in said.replace(SECRET, "")
    if kind in TRUSTED[name][option]:
        assert status == 2, said
        assert "--trust" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["model_with_code", "model_with_pickle"])
def test_a_reranker_of_a_stranger(kind: str, world: Path, hostile: dict[str, Path]) -> None:
    """No option of a command names one, but a config's ``model.env.index`` may."""
    reranker = RerankRetriever(str(world / "index"), str(hostile[kind]))
    with pytest.raises(TrustError, match="--trust"):
        reranker.search(["Oslo"], 1)
    assert not hostile["ran"].exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["checkpoint", "shards"])
def test_a_guards_snapshot_of_a_stranger(kind: str, hostile: dict[str, Path]) -> None:
    """A checkpoint names the snapshots that a guard goes back to."""
    snapshots = Snapshots()
    snapshots.load({0: str(hostile[kind])})
    reads = AtomicCheckpointIO().load_checkpoint
    strategy = SimpleNamespace(load_checkpoint=lambda path, weights_only: reads(path))
    trainer: Any = SimpleNamespace(strategy=strategy, optimizers=[])
    with pytest.raises(UnsafeCheckpointError, match="nothing of it was run"):
        snapshots.restore(trainer, 1)
    assert not hostile["ran"].exists()

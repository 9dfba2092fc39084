"""The commands ``research serve-agent`` and ``research ask --web``, from the options to the end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

pytest.importorskip("fastapi")

from doubles import tiny
from doubles.agent_world import ask_page
from doubles.fake_retrieval import post

from research_rl.envs.retrieval import build_index
from research_rl.trainers.cli import ask, serve_agent
from research_rl.trainers.settings import UsageError


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model and an index, as the command line names them."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "corpus.jsonl").write_text('{"id": "1", "contents": "Oslo\\nOslo is a city."}\n')
    build_index(folder / "corpus.jsonl", folder / "index", kind="bm25")
    model = tiny.checkpoint(folder / "model")
    told = ["--model", str(model), "--index", str(folder / "index"), "--prompt", "{prompt}"]
    return [*told, "--max-tokens", "12"]


@pytest.mark.parametrize("command", [["serve-agent"], ["ask", "--web"]])
def test_it_serves_until_it_is_told_to_stop(command: list[str], options: list[str]) -> None:
    words = [sys.executable, "-m", "research_rl.trainers.cli", *command, "--port", "0", *options]
    environment = {**os.environ, "RESEARCH_SERVER_KEY": ""}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            answer = ask_page(found[0], "Who?")[-1]
            assert answer["usage"]["completion_tokens"] == 12
            body: dict[str, Any] = {"model": "research"}
            body |= {"messages": [{"role": "user", "content": "Who?"}]}
            status, told = post(f"{found[0]}/v1/chat/completions", body)
            assert status == 200
            assert told["choices"][0]["finish_reason"] == "length"
            assert told["research"]["no_answer"] == answer["no_answer"]
            if command == ["serve-agent"]:
                assert line.startswith("serving research on ")
                assert post(found[0], None, method="GET")[0] == 404
            else:
                assert line.startswith("ask on ")
                with urllib.request.urlopen(found[0]) as page:
                    policy = page.headers["Content-Security-Policy"]
                    assert "unsafe-inline" not in policy
                    assert "<title>Ask</title>" in page.read().decode()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_what_makes_no_sense_is_named(options: list[str]) -> None:
    for more, says in (
        (["--max-waiting", "0"], "--max-waiting must be more than 0"),
        (["--max-slots", "-1"], "--max-slots must be more than 0"),
        (["--timeout", "nan"], "--timeout must be more than 0"),
        (["--mcp", "--port", "1"], "--mcp must stand without --host and --port"),
        (["--max-tokens", "4096"], "must fit in the model's 4096 positions.* with --max-tokens"),
    ):
        if "--mcp" not in more:
            more += ["--port", "0"]
        with pytest.raises(UsageError, match=says):
            serve_agent.main([*options, *more])
    with pytest.raises(UsageError, match="a model must be named"):
        serve_agent.main(["--index", "none", "--port", "0"])


def test_a_package_that_is_missing_is_named(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(*names: str) -> Any:
        return lambda name, *rest: None if name in names else find(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", without("mcp"))
    with pytest.raises(ImportError, match=r"an MCP server needs mcp; .*\[agent\]"):
        serve_agent.main(["--mcp", *options])
    monkeypatch.setattr("importlib.util.find_spec", without("uvicorn"))
    for main, words in ((serve_agent.main, options), (ask.main, ["--web", *options])):
        with pytest.raises(ImportError, match="serving an agent needs uvicorn"):
            main(words)


def test_without_mcp_its_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from research_rl.trainers.agent import app

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert app._mcp_route(None, None) is None  # type: ignore[arg-type]


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from research_rl.trainers.cli import dispatch\n"
        "for words in ('serve-agent --help', 'ask --help', 'ask --port 1 Q'):\n"
        "    sys.argv = ['research', *words.split()]\n"
        "    try: dispatch.main()\n"
        "    except SystemExit: pass\n"
        "import json; print(); print(json.dumps(sorted(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "fastapi", "transformers", "mcp"}
    assert "--port must come with --web" in run.stderr

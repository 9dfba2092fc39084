"""Every benchmark starts, and what it imports and mentions is there."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from doubles.mentions import missing, names_in, resolves
from doubles.places import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(
    path.name
    for path in FOLDER.glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")  # the others are parts of one
)
ASK_EACH = """
import contextlib, io, json, runpy, sys, traceback
folder, *scripts = sys.argv[1:]
sys.path.insert(0, folder)
for script in scripts:
    said, status = io.StringIO(), None
    sys.argv = [f"{folder}/{script}", "--help"]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit:
        status = exit.code
    except BaseException:
        status = traceback.format_exc()
    print(json.dumps([script, status, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[Any, str]]:
    """Status and help of each script; one process asks them all, for torch is slow to import."""
    command = [sys.executable, "-c", ASK_EACH, str(FOLDER), *SCRIPTS]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {script: (status, said) for script, status, said in rows}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, helps: dict[str, tuple[Any, str]]) -> None:
    status, said = helps[script]
    assert status == 0, status
    assert f"usage: {script}" in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_it_names_is_there(script: str) -> None:
    tree = ast.parse((FOLDER / script).read_text(encoding="utf-8"))
    said = ast.get_docstring(tree) or ""
    files = set(re.findall(r"[\w./-]*\w\.(?:py|md|yaml)\b", said))
    assert not [f for f in files if not (ROOT / f).is_file() and not (FOLDER / f).is_file()]
    assert not list(missing(said, FOLDER))
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    named = {name for text in texts if isinstance(text, str) for name in names_in(text)}
    named |= {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("research_rl.")
        for alias in node.names
    }
    assert not [name for name in sorted(named) if not resolves(name)]

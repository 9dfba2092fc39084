"""The wheel holds what a user needs, under the names the README gives, and nothing else."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from doubles.places import ROOT

PACKAGES = ("envs", "agents", "trainers", "configs")
DOOR = "door"
"""The folder that installs as ``research_rl`` itself."""
METADATA = ("setup.cfg", "setup.py", "MANIFEST.in", "pyproject.toml", "README.md", "LICENSE")
URL = "https://example.org/somebody/research"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, built from a copy so that nothing stale or generated gets in."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, DOOR):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in METADATA:
        shutil.copy(ROOT / name, source)
    build = (
        "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", build, str(source)],
        cwd=source,
        capture_output=True,
        text=True,
        env={**os.environ, "RESEARCH_RL_URL": URL},
    )
    assert run.returncode == 0, run.stderr
    return ZipFile(source / run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_every_file_of_the_packages_is_in_the_wheel(wheel: ZipFile) -> None:
    wanted = {
        f"research_rl/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"research_rl/__init__.py", "research_rl/py.typed"}
    held = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert wanted - held == set()
    assert held - wanted == set()


@pytest.mark.parametrize(
    "told",
    [
        "agent/templates/ask.html",
        "agent/templates/ask.css",
        "agent/templates/ask.js",
        "overview/templates/run.html",
        "overview/templates/compare.html",
        "usage/options.json",
    ],
)
def test_what_is_read_as_a_file_is_in_the_wheel(told: str, wheel: ZipFile) -> None:
    assert wheel.read(f"research_rl/trainers/{told}").strip()


def test_the_page_and_the_table_of_options_open_from_the_wheel(
    wheel: ZipFile, tmp_path: Path
) -> None:
    wheel.extractall(tmp_path)
    opens = (
        "from research_rl.trainers.agent import page; "
        "from research_rl.trainers.usage import table; "
        "assert page.agent_page(wants_key=True); assert table.TABLE.read_bytes(); "
        "print(page.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", opens],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(tmp_path)


def test_the_index_page_has_links_that_work_there(metadata: Message) -> None:
    page = metadata.get_payload()
    assert isinstance(page, str)
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert len(links) > 20
    assert not [link for link in links if not link.startswith(("https://", "#"))]
    assert "![learning curve" in page
    version = metadata["Version"]
    assert f"({URL}/raw/v{version}/docs/quickstart.png)" in page
    assert f"({URL}/blob/v{version}/docs/install.md)" in page
    named = dict(url.split(", ", 1) for url in metadata.get_all("Project-URL") or [])
    assert {"Source", "Documentation", "Changelog", "Issues"} <= set(named)
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or [])


def test_without_an_address_the_page_is_the_readme() -> None:
    made = runpy.run_path(str(ROOT / "setup.py"), run_name="not_main")
    text = "[a](docs/x.md) ![b\nc](p.png) [d](https://e.org) [f](#g) [`h`](i.md#j)"
    assert made["absolute"](text, "https://u", "1.0.0") == (
        "[a](https://u/blob/v1.0.0/docs/x.md) ![b\nc](https://u/raw/v1.0.0/p.png) "
        "[d](https://e.org) [f](#g) [`h`](https://u/blob/v1.0.0/i.md#j)"
    )


def test_the_sdist_is_told_of_everything() -> None:
    """What git holds is in the sdist, but for what concerns the repository alone."""
    told = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    grafted = set(re.findall(r"^graft (\S+)$", told, re.MULTILINE)) | {*PACKAGES, DOOR}
    listed = re.findall(r"^include (.+)$", told, re.MULTILINE)[0].split()
    own = {".git", ".github", ".gitignore", ".editorconfig", ".pre-commit-config.yaml", "ruff.toml"}
    made = {"dist", "build", "runs", ".venv", ".typecheck"}
    for path in ROOT.iterdir():
        ignored = path.name in own | made | {"setup.cfg", "MANIFEST.in"} or path.name.endswith(
            "egg-info"
        )
        if not ignored and not path.name.startswith((".pytest", ".ruff", ".mypy", ".hypo", "__")):
            assert path.name in grafted or any(path.match(one) for one in listed), path.name


def test_the_release_command_is_a_script_that_uploads_nothing() -> None:
    script = ROOT / ".ci" / "release"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert 'twine" check' in text
    runs = text.partition("<<NEXT")[0]  # behind it stands what a person types
    assert not re.search(r"upload dist|git (push|commit)|git tag -a", runs)
    wrong = subprocess.run([str(script), "1.x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "X.Y.Z" in wrong.stderr


def test_console_command(wheel: ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    parser = ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["console_scripts"]) == {"research": "research_rl.trainers.cli:main"}


def test_faiss_is_an_extra_and_never_both(metadata: Message) -> None:
    needs = metadata.get_all("Requires-Dist") or []
    faiss = {n.partition(";")[2].strip(): re.split("[<>=]", n)[0] for n in needs if "faiss" in n}
    assert faiss == {'extra == "cpu"': "faiss-cpu", 'extra == "gpu"': "faiss-gpu"}
    core = {n for n in needs if "extra ==" not in n}
    assert any(n.startswith("pytorch-lightning") for n in core)
    assert not any(n.startswith("lightning") for n in core)


ELSEWHERE = {
    "gem": "an adapter to a trainer that a user has installed already",
    "lightning_fabric": "a part of pytorch-lightning's own distribution",
    "research_rl": "this package",
    "starlette": "what fastapi is made of",
}
"""Modules that are imported and not declared, each with the reason."""


def test_what_is_imported_is_declared() -> None:
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [declared["options"]["install_requires"], *declared["options.extras_require"].values()]
    names = [re.split(r"[\[<>=;,\s]", line)[0].lower() for t in texts for line in t.split("\n")]
    known = {name.replace("-", "_") for name in names if name}
    known |= {"yaml"} if "pyyaml" in known else set()
    known |= {"faiss"} if {"faiss_cpu", "faiss_gpu"} <= known else set()
    known |= {"grpc"} if "grpcio" in known else set()
    known |= {"bs4"} if "beautifulsoup4" in known else set()
    known |= {"docx"} if "python_docx" in known else set()
    imported = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(str(node.module).partition(".")[0])
    missing = imported - known - set(sys.stdlib_module_names) - set(ELSEWHERE)
    assert not missing, f"setup.cfg must declare {sorted(missing)}"
    assert set(ELSEWHERE) <= imported


OF = {
    **{"pytorch_lightning": "pytorch-lightning", "lightning_fabric": "pytorch-lightning"},
    **{"yaml": "PyYAML", "faiss": "faiss-cpu"},
}
"""Modules whose distribution has another name."""
BOUNDED = {"uvicorn", "fastapi", "peft", "transformers", "jsonargparse", "gymnasium", "numpy"}
"""Packages without private names here, of which a major version changes what is used."""


def private_owners() -> set[str]:
    """The packages whose private names are imported or read from their module."""
    owners = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            modules = {}
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    modules |= {a.asname or a.name.partition(".")[0]: a.name for a in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    parts = [*node.module.split("."), *(alias.name for alias in node.names)]
                    if any(part.startswith("_") and part != "__future__" for part in parts):
                        owners.add(parts[0])
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
                    root = node.value
                    while isinstance(root, ast.Attribute):
                        root = root.value
                    if isinstance(root, ast.Name) and root.id in modules:
                        owners.add(modules[root.id].partition(".")[0])
    return owners - set(sys.stdlib_module_names) - {"research_rl", "__future__"}


def test_what_may_break_us_is_bounded_above() -> None:
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [declared["options"]["install_requires"], *declared["options.extras_require"].values()]
    lines = [line.strip() for text in texts for line in text.split("\n") if line.strip()]
    bounds: dict[str, list[bool]] = {}
    for line in lines:
        name = re.split(r"[\[<>=;,\s]", line)[0].lower().replace("_", "-")
        bounds.setdefault(name, []).append("<" in line)
    found = private_owners()
    assert {"torch", "jsonargparse"} <= found
    for owner in found | BOUNDED:
        name = OF.get(owner, owner).lower().replace("_", "-")
        assert all(bounds[name]), f"setup.cfg must have an upper bound for {name}"


def test_nothing_is_called_that_the_next_jsonargparse_lacks() -> None:
    gone = re.compile(r"\.instantiate_classes\(|skip_none=|enable_path=|add_instantiator\(")
    for package in (*PACKAGES, "tests", "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            if file != Path(__file__):
                found = gone.search(file.read_text(encoding="utf-8"))
                assert found is None, f"{file.name} calls {found[0] if found else ''}"


def test_all_files_name_one_version() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_run_the_pinned_tools() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    tools = re.findall(r"[\w-]+==[\w.]+", hooks)
    assert tools
    assert set(tools) <= set(pins)


AUTOMATION = [
    ROOT / ".pre-commit-config.yaml",
    *sorted((ROOT / ".github/workflows").glob("*.yml")),
    *sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")),
]


@pytest.mark.parametrize("file", AUTOMATION, ids=lambda file: file.name)
def test_automation_is_yaml_and_names_what_is_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    named = re.findall(r"(?<![\w./-])\.?[\w/-]+\.(?:txt|cfg|md|py)\b|\.ci/\w+", text)
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert not missing
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert set(re.findall(r"\bmake (check|docs|setup|slow|test)\b", text)) <= targets


def test_what_the_extras_bring_is_pinned() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    extras = dict(setup["options.extras_require"])
    extras.pop("gpu")  # it takes the place of cpu
    named = {re.split(r"[<>=\[]", line)[0] for part in extras.values() for line in part.split()}
    assert named - pins == set()


def test_constraints_serve_cpu_and_gpu() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 and "+" not in pin for pin in pins)
    assert "torch==2.13.0" in pins

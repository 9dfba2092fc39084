"""Help pages and early usage errors say what the real parsers say."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from doubles.entry_points import options_in_force
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from research_rl.trainers.cli import dispatch
from research_rl.trainers.settings import UsageError, careful, shipped_configs
from research_rl.trainers.usage import (
    CHECKED,
    OPENINGS,
    check_usage,
    help_page,
    options_of,
    show_help,
)
from research_rl.trainers.usage.table import is_of_this_lightning

TRAINER = CHECKED[:-1]


@pytest.mark.parametrize("command", CHECKED)
def test_the_table_is_that_of_the_real_parser(command: str) -> None:
    real = {option.name: option for option in options_in_force(command)}
    known = options_of(command)
    if not is_of_this_lightning():
        real, known = (
            {n: o for n, o in those.items() if not n.startswith("trainer.")}
            for those in (real, known)
        )
    assert set(known) == set(real)
    for name, option in real.items():
        assert known[name] == option, "make options renews the table"


@pytest.mark.parametrize("command", CHECKED)
def test_the_short_help_is_a_screen_and_names_what_is_there(command: str) -> None:
    page = help_page(command, width=80)
    lines = page.splitlines()
    assert len(lines) <= 48
    assert all(len(line) <= 88 for line in lines)
    assert f"research {command}" in page
    assert "one group of them: ." not in " ".join(page.split())
    known = options_of(command)
    most_used = OPENINGS[command].most_used
    assert 10 <= len(most_used) <= 18
    for name, value, line in most_used:
        above = [known[n] for n in known if name.startswith(f"{n}.") and known[n].is_open]
        assert name in known or above, name
        assert f"--{name}" in page
        assert line
        assert (not value) == (name in known and known[name].kind == "flag")


@pytest.mark.parametrize("command", CHECKED)
def test_all_shows_every_option_ours_first(command: str) -> None:
    page = help_page(command, "all", 100)
    assert all(f"--{name}" in page for name in options_of(command))
    if command in TRAINER:
        assert page.index("--model.policy.model") < page.index("--data.train")
        assert page.index("--data.train") < page.index("--trainer.accelerator")


def test_a_group_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_help("fit", ["--config", "quickstart", "--help", "model.env"])
    page = capsys.readouterr().out
    assert "--model.env.top_k int (default: 5)" in page
    assert "--model.updates" not in page
    assert not show_help("fit", ["--config", "quickstart"])
    with pytest.raises(UsageError, match=r"did you mean model\.updates"):
        show_help("fit", ["--help", "model.update"])


@pytest.mark.parametrize("name", shipped_configs())
def test_no_shipped_config_is_refused(name: str) -> None:
    command = "evaluate" if name.startswith(("evaluate/", "method/")) else "fit"
    whole = {"evaluate": "evaluate/quickstart", "fit": "quickstart"}[command]
    with careful([]):
        check_usage(command, ["--config", whole, "--config", name])
        if command == "fit":
            check_usage("predict", ["--config", whole, "--config", name])


@pytest.mark.parametrize(
    "words",
    [
        "--model.algorithm GRPO --model.algorithm.kl_coef 0.1",
        "--model.optimizer.lr 1e-3 --model.optimizer.init_args.lr=1e-3",
        "--trainer.callbacks+=LearningCurve --trainer.callbacks+ HealthMonitor",
        "--data.world.train_hops.2 4 --model.policy.lora.r 8",
        "--trainer.default_root_dir ${data.train} --data.train x.jsonl",
        "--trainer.precision bf16-mixed --trainer.devices 2 --trainer.devices+ 1",
        "--model.updates {'group_size':3} --model.sampling.stop ['</a>']",
        "--model.env.prompt {prompt} --model.env.index ${data.world.folder}/index",
        "--trainer.logger false --trainer.max_time 00:01:00:00 --print_config",
        "--overwrite --ckpt_path last --weights_only null --seed_everything 3",
        "--model.policy.chat_template.kwargs {'enable_thinking':false}",
        "--model.policy.chat_template.kwargs.enable_thinking false",
    ],
)
def test_what_the_real_parser_takes_is_not_refused(words: str) -> None:
    with careful(words.split()):
        check_usage("fit", ["--config", "quickstart", *words.split()])


MISTAKES = [
    ("fit", "", "a config has it all: research fit --config quickstart"),
    ("fit", "quickstart", "unrecognized arguments: quickstart"),
    ("fit", "--config", "argument -c/--config: expected one argument"),
    ("fit", "--config quikstart", "no config 'quikstart'; did you mean quickstart?"),
    ("fit", "--config Q --trainer.max_step 3", "did you mean --trainer.max_steps?"),
    ("fit", "--config Q --data.batch_size", "--data.batch_size: expected one argument"),
    ("sft", "--config Q --data.batch_size x", "data.batch_size: Expected a <class 'int'>"),
    ("fit", "--config Q --model.updates.compute_dtype bf16", "Literal['bfloat16', 'float16'"),
    ("fit", "--config Q --overwrite=yes", "ignored explicit argument 'yes'"),
    ("test", "--config mine.yaml", "no option 'model.sed'; did you mean model.seed?"),
    ("fit", "--config Q --model.env.topk 3", "did you mean --model.env.top_k?"),
    ("predict", "--config Q --trainer.benchmark maybe", "trainer.benchmark: Expected a <class"),
    ("evaluate", "--config evaluate/quickstar", "did you mean evaluate/quickstart?"),
    ("evaluate", "--config evaluate/quickstart --limt 3", "did you mean --limit?"),
    ("evaluate", "", "a config has it all: research evaluate --config evaluate/quickstart"),
]


@pytest.mark.parametrize(("command", "words", "reason"), MISTAKES)
def test_a_mistake_is_told_as_the_real_parser_tells_it(
    command: str,
    words: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: quickstart\nmodel: {sed: 3}\n", encoding="utf-8")
    args = [command, *words.replace("Q", "quickstart").split()]
    monkeypatch.setattr(sys, "argv", ["research", *args])
    with pytest.raises(SystemExit) as stop, careful(args):
        check_usage(command, args[1:])
    assert stop.value.code == 2
    early = capsys.readouterr().err
    assert reason in early
    assert real_error(monkeypatch, capsys) == early


def real_error(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """What the command says without the early check; "" where its parser has no complaint."""

    def run_nothing(self: Any, *args: Any) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "check_usage", lambda command, args: None)
        patch.setattr("research_rl.trainers.cli.fit.ResearchCLI._run_subcommand", run_nothing)
        patch.setattr("research_rl.trainers.cli.fit.ResearchCLI.instantiate_classes", run_nothing)
        with suppress(SystemExit):
            dispatch.main()
    said: str = capsys.readouterr().err
    return "".join(line for line in said.splitlines(True) if line.startswith("research: error"))


VALUES = st.sampled_from(["3", "0.5", "x", "true", "null", "[1]", "{a: 1}", "auto", "1e-3", ""])
NAMES = [o.name for o in options_of("fit").values() if o.kind == "value" and o.type]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=st.sampled_from(NAMES), value=VALUES)
@example(name="trainer.default_root_dir", value="1e-3")
def test_nothing_is_refused_that_the_real_parser_takes(
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["fit", "--config", "quickstart", f"--{name}={value}"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["research", *args])
        refused = False
        with careful(args):
            try:
                check_usage("fit", args[1:])
            except SystemExit:
                refused = True
        early = capsys.readouterr().err
        if refused:
            assert early.startswith(f"research: error: {name}: ")
            real = real_error(patch, capsys)
            assert real
            # it may tell first of an option that is made of this one: a logger of the run's folder
            assert real == early or not real.startswith(f"research: error: {name}: ")

"""What jsonargparse says of a mistake is still worded as the one-line errors expect it.

Each row makes one mistake before a real parser. A new jsonargparse that says it in other words
fails here, by the name of what is looked for, before a user has to read a long message.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import pytest

from research_rl.envs.system import FAILED
from research_rl.trainers.credit import Credit, Price
from research_rl.trainers.settings import errors
from research_rl.trainers.settings.shipped import OneLineParser, ShippedConfigFile


class Rule:
    """What a config names by its class."""

    def __init__(self, coef: float = 0.1) -> None:
        self.coef = coef


class Hearing(OneLineParser):
    """Keeps what jsonargparse says."""

    heard = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        Hearing.heard = message
        super().error(message, ex)


def parser() -> Hearing:
    """A parser with one subcommand, whose options are like those of ``research fit``."""
    section = Hearing(parser_mode="omegaconf+")
    section.add_argument("--config", action=ShippedConfigFile)
    section.add_argument("--model.seed", type=int, default=0)
    section.add_argument("--model.rule", type=Rule, sub_configs=True)
    section.add_argument("--model.wait", type=int | bool | None, default=None)
    section.add_argument("--model.rules", type=list[Rule] | Rule | None, default=None)
    section.add_argument("--model.price", type=Price | None, sub_configs=True)
    section.add_argument("--model.credit", type=Credit | None, sub_configs=True)
    whole = Hearing(parser_mode="omegaconf+")
    whole.add_subcommands().add_subcommand("fit", section)
    return whole


def joined(text: str) -> str:
    """The text with its lines joined, where one that ends with a colon takes the next one in."""
    return re.sub(r":\s*\n[\s-]*", ": ", text)


MISTAKES: dict[str, tuple[list[str], str | re.Pattern[str], str]] = {
    "key": (["--model.seed", "x"], errors._KEY, "model.seed: Expected a"),
    "no class": (["--model.rule", "Nope"], errors._NO_CLASS, "model.rule: no class 'Nope'"),
    "other class": (
        ["--model.rule", "collections.Counter"],
        errors._OTHER_CLASS,
        "model.rule: collections.Counter is no Rule",
    ),
    "no argument": (
        ["--config", "{model: {rule: {class_path: mine.Rule, init_args: {coeff: 1}}}}"],
        errors._NO_ARGUMENT,
        "Rule has no option 'coeff' (known: coef); did you mean coef?",
    ),
    "no option": (
        ["--model.sed", "3"],
        errors._NO_OPTION,
        "did you mean --model.seed?",
    ),
    "no key": (
        ["--config", "{model: {sed: 3}}"],
        errors._NO_KEY,
        "no option 'model.sed'; did you mean model.seed?",
    ),
    "no subclass": (
        ["--config", "{model: {rules: [{class_path: Nope}]}}"],
        errors._NO_SUBCLASS,
        "model.rules: no class 'Nope'",
    ),
}
NOISES: dict[str, tuple[list[str], str]] = {
    "Expected a path but": (["--model.rule", "Nope"], "Expected a path"),
    "Does not validate against": (["--model.wait", "x"], "Does not validate"),
    "Subtypes:": (["--model.wait", "x"], "Subtypes"),
    "Errors:": (["--model.wait", "x"], "Errors:"),
    "Given value": (["--model.wait", "x"], "Given value"),
}


def said(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that these arguments of fit end with."""
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["fit", *args])
    assert stop.value.code == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(autouse=True)
def this_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    import sys

    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_sentence_is_worded_as_it_is_looked_for(
    mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args, sentence, line = MISTAKES[mistake]
    told = said(args, capsys)
    heard = joined(Hearing.heard)
    assert re.search(sentence, heard), f"jsonargparse says now: {heard}"
    assert line in told
    assert errors._NO_SUBCLASS not in told


@pytest.mark.parametrize("noise", NOISES)
def test_what_helps_nobody_is_left_out(noise: str, capsys: pytest.CaptureFixture[str]) -> None:
    args, words = NOISES[noise]
    told = said(args, capsys)
    assert noise in errors._NOISE.pattern
    assert noise in Hearing.heard, f"jsonargparse says now: {Hearing.heard}"
    assert words not in told


def test_every_noise_is_provoked() -> None:
    assert set(errors._NOISE.pattern.split("|")) == set(NOISES)


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["--model.price", "SearchPrise"], "did you mean SearchPrice?"),
        (["--model.credit", "StepGroup"], "did you mean StepGroups?"),
        (["--config", "{model: {credit: {class_path: InformationGains}}}"], "InformationGain?"),
    ],
)
def test_a_class_that_may_be_left_out_is_suggested(
    args: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(args, capsys)
    assert meant in line
    assert "NoneType" not in line
    assert line.endswith("a class of your own is named with its module, as my_file.MyClass")


def test_an_option_or_a_class_that_is_none_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"class_path": "SearchPrice", "init_args": {"coeff": 1}}
    line = said(["--config", json.dumps({"model": {"price": asked}})], capsys)
    assert line.endswith(
        "SearchPrice has no option 'coeff' (known: coef, limit, support); did you mean coef?"
    )
    line = said(["--model.price", "collections.Counter"], capsys)
    assert re.search(r"is no Price \(known: .*\bSearchPrice\b", line), "tests bring classes, too"


@pytest.mark.parametrize("key", errors.PLUG_POINTS)
def test_what_a_config_names_by_its_class_is_there(key: str) -> None:
    import research_rl.trainers.cli.fit  # noqa: F401  (whose parser imports them all)

    assert errors._class(errors.PLUG_POINTS[key]) is not object

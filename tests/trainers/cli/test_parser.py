"""What a command line refers to is kept for the config that it saves, and for no other one."""

from __future__ import annotations

from jsonargparse import set_parsing_settings

from research_rl.trainers.cli.parser import ResearchParser, Unresolved
from research_rl.trainers.settings.shipped import ShippedConfigFile

WRITTEN = "{logs: '${trainer.default_root_dir}/logs'}"


def section() -> ResearchParser:
    """The parser of a subcommand, as small as it can be."""
    parser = ResearchParser(exit_on_error=False, parser_mode="omegaconf+")
    parser.add_argument("--config", action=ShippedConfigFile)
    parser.add_argument("--trainer.default_root_dir", type=str, default="runs/a")
    parser.add_argument("--logs", type=str, default="")
    return parser


def command() -> tuple[ResearchParser, ResearchParser]:
    """A parser with one subcommand, which share what the command line says."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # as `run` does
    whole, part = ResearchParser(exit_on_error=False, parser_mode="omegaconf+"), section()
    whole.unresolved = part.unresolved = Unresolved()
    whole.add_subcommands().add_subcommand("fit", part)
    return whole, part


def test_a_saved_config_keeps_its_references() -> None:
    whole, part = command()
    config = whole.parse_args(["fit", "--config", WRITTEN])
    assert config.fit.logs == "runs/a/logs"
    assert "logs: ${trainer.default_root_dir}/logs" in part.dump(config.fit)


def test_another_command_of_the_process_knows_nothing_of_them() -> None:
    whole, _ = command()
    config = whole.parse_args(["fit", "--config", WRITTEN])
    later, part = command()
    plain = later.parse_args(["fit", "--logs", "runs/a/logs"])
    assert plain.fit.logs == config.fit.logs
    assert "logs: runs/a/logs" in part.dump(plain.fit)
    assert not section().unresolved.text

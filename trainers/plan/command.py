"""The command ``research plan``: arguments in, a table or JSON out.

It takes all options of ``research fit`` and a few of its own, ``--device h100`` for instance.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_rl.envs.retrieval.index import parse_size
from research_rl.envs.system import CommandLine
from research_rl.trainers.plan.seconds import (
    DEVICES,
    PROMPT_TOKENS,
    SAMPLED_SHARE,
    Device,
    this_cpu,
)
from research_rl.trainers.settings import UsageError
from research_rl.trainers.usage import check_usage

if TYPE_CHECKING:
    from research_rl.trainers.plan.sizes import Sizes


def main(args: Sequence[str]) -> None:
    """Run ``research plan`` with these arguments."""
    own, rest = _parser().parse_known_args(args)
    if not any(arg.startswith(("-c", "--config")) for arg in rest):
        raise UsageError("a plan must have a config, got none; try --config quickstart")
    check_usage("fit", rest)
    from research_rl.trainers.plan.report import as_json, as_table, make_plan
    from research_rl.trainers.plan.sizes import sizes_of

    config = parsed(rest)
    ranks = own.devices * own.nodes if own.devices else _ranks(config["trainer"])
    sizes = sizes_of(config, ranks, _on_cpu(own.device, config))
    response = own.response_tokens or sizes.response
    sizes = replace(
        sizes,
        prompt=own.prompt_tokens,
        response=own.longest_tokens or sizes.response,
        mean_response=min(response, sizes.response),
        sampled=own.sampled_share,
    )
    device = _device(own.device, own.device_memory, config, sizes)
    plan = make_plan(sizes, device)
    print(as_json(plan) if own.json else as_table(plan))


def parsed(args: Sequence[str]) -> dict[str, Any]:
    """Return the config that ``research fit`` would have with these arguments.

    Raises:
        SystemExit: there is a mistake in it (status 2, the reason on stderr).
    """
    from research_rl.trainers.cli import ResearchCLI, run

    class Parse(ResearchCLI):
        """Stops before anything is made."""

        def _set_seed(self) -> None:
            """Leave the random numbers of this process alone."""

        def before_instantiate_classes(self) -> None:
            """Check no folder and no file: nothing is begun."""

        def instantiate_classes(self) -> None:
            """Leave model, data and trainer unmade."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Run no subcommand: the config is all that is wanted."""

    cli: Any = run(["fit", *args], cli=Parse)
    found: dict[str, Any] = cli.config["fit"].as_dict()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research plan",
        description="Memory and time of a configuration. All options of `research fit` are taken.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", choices=[*DEVICES, "cpu"], help="default: what is here")
    parser.add_argument("--devices", type=_positive, help="of each node; default trainer.devices")
    parser.add_argument("--nodes", type=_positive, default=1, help="default 1")
    parser.add_argument("--device-memory", type=parse_size, help="of one device, 80GB for instance")
    parser.add_argument(
        "--prompt-tokens", type=_positive, default=PROMPT_TOKENS, help="default %(default)s"
    )
    parser.add_argument(
        "--longest-tokens",
        type=_positive,
        help="of the longest response; default sampling.max_response_tokens",
    )
    parser.add_argument(
        "--response-tokens", type=_positive, help="of a response on average, for the time"
    )
    parser.add_argument(
        "--sampled-share",
        type=float,
        default=SAMPLED_SHARE,
        help="of a response that is not search results; default %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _ranks(trainer: dict[str, Any]) -> int:
    devices = trainer.get("devices")
    nodes = int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list):
        return nodes * len(devices)
    if str(devices).isdigit():
        return nodes * max(1, int(str(devices)))
    import torch

    return nodes * max(1, torch.cuda.device_count())


def _device(name: str | None, memory: int | None, config: dict[str, Any], sizes: Sizes) -> Device:
    if name is None and not _on_cpu(name, config):
        import torch

        properties = torch.cuda.get_device_properties(0)
        name = next((n for n in DEVICES if n in properties.name.lower()), "h100")
        memory = memory or properties.total_memory
    if name is None or name == "cpu":
        return this_cpu(memory or _main_memory(), sizes, config.get("torch_threads"))
    return replace(DEVICES[name], memory=memory) if memory else DEVICES[name]


def _on_cpu(name: str | None, config: dict[str, Any]) -> bool:
    """Whether this machine's processor is planned for, and no GPU that is named or here."""
    import torch

    here = torch.cuda.is_available() and config["trainer"].get("accelerator") != "cpu"
    return name == "cpu" if name is not None else not here


def _main_memory() -> int:
    file = Path("/proc/meminfo")
    if not file.is_file():
        raise UsageError("this system does not tell its memory; name it with --device-memory")
    return 1024 * int(file.read_text(encoding="ascii").split("MemTotal:")[1].split()[0])

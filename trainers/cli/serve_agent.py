"""The command ``research serve-agent``: the agent behind HTTP, or as a tool on stdin and stdout.

``research ask --web`` is the same server with a page.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from research_rl.envs.system import CommandLine
from research_rl.envs.web import (
    SERVER_KEY_VARIABLE,
    check_installed,
    listen,
    server_key,
    warn_if_open,
)
from research_rl.trainers.agent import (
    Asked,
    add_agent_options,
    check_mcp,
    make_asker,
    resolve,
    tell_searched,
)
from research_rl.trainers.settings import UsageError

if TYPE_CHECKING:
    from research_rl.trainers.agent import QuestionQueue

ADDRESS: dict[str, Any] = {
    **{"host": "127.0.0.1", "port": 8000, "max_slots": 16, "max_waiting": 64, "timeout": 600.0},
}
"""The options of the server, with what they are unless they are given."""


def main(argv: list[str]) -> None:
    """Serve until SIGINT or SIGTERM, or with ``--mcp`` until the input ends.

    Raises:
        ImportError: a package of the extra ``serve``, or of ``agent``, is not installed.
        OSError: the address cannot be listened on.
        UsageError: there is no model, or no index.
    """
    given = _parser().parse_args(argv)
    if not given.mcp:
        start(given, name=given.served_model_name)
        return
    if given.host is not None or given.port is not None:
        raise UsageError(
            "--mcp must stand without --host and --port: it speaks on stdin and stdout"
        )
    check_mcp()
    told = _address(given)
    settings = resolve(given)
    tell_searched(given, settings)
    from research_rl.trainers.agent import speak_mcp

    speak_mcp(_queue(settings, told), told["timeout"])


def start(given: argparse.Namespace, name: str = "research", page: bool = False) -> None:
    """Serve an agent until SIGINT or SIGTERM.

    Args:
        given: the options of ``add_address`` and ``add_agent_options``.
        name: under which clients ask for it.
        page: show a page on which to ask.
    """
    check_installed("serving an agent")
    told = _address(given)
    settings = resolve(given)
    tell_searched(given, settings)
    from research_rl.trainers.agent import AgentSettings, agent_page, serve_agent

    key = server_key()
    warn_if_open(told["host"], key)
    bound = listen(told["host"], told["port"])
    queue = _queue(settings, told)
    host, port = bound.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    shown = agent_page(wants_key=key is not None) if page else None
    bound.listen()  # who connects from here on waits for the server, which is about to start
    print(f"ask on {url}" if page else f"serving {name} on {url}", flush=True)
    serve_agent(queue, bound, AgentSettings(name, key, told["timeout"], shown))


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server itself; None is what ADDRESS says."""
    add = parser.add_argument
    add("--host", help=f"address to listen on ({ADDRESS['host']})")
    add("--port", type=int, metavar="N", help=f"0 takes a free one ({ADDRESS['port']})")
    add(
        "--max-slots",
        type=int,
        metavar="N",
        help=f"questions answered together at most ({ADDRESS['max_slots']})",
    )
    add(
        "--max-waiting",
        type=int,
        metavar="N",
        help=f"questions that may wait; further ones are answered 429 ({ADDRESS['max_waiting']})",
    )
    add(
        "--timeout",
        type=float,
        metavar="S",
        help=f"seconds in which an answer must be there ({ADDRESS['timeout']:g})",
    )


def _address(given: argparse.Namespace) -> dict[str, Any]:
    named = {name: vars(given)[name] for name in ADDRESS}
    told = {name: ADDRESS[name] if value is None else value for name, value in named.items()}
    for name in ("max_slots", "max_waiting", "timeout"):
        if not told[name] > 0:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} must be more than 0, got {told[name]}")
    return told


def _queue(settings: Asked, told: dict[str, Any]) -> QuestionQueue:
    """The queue in front of the agent; one that can answer no question is refused now."""
    from research_rl.trainers.agent import QuestionQueue

    asker = make_asker(settings, told["max_slots"])
    try:
        asker.check("?")
    except ValueError as error:
        raise UsageError(f"a question {error}, with --max-tokens") from error
    return QuestionQueue(asker, told["max_waiting"])


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research serve-agent",
        description="Serve a policy with its search tool: questions in, answers with passages out. "
        "Clients speak OpenAI's chat completions, or MCP at /mcp.",
        epilog=f"Clients must send a key if the variable {SERVER_KEY_VARIABLE} holds one.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--mcp", action="store_true", help="be an MCP server on stdin and stdout, without HTTP")
    add("--served-model-name", default="research", help="what clients call it (%(default)s)")
    add_address(parser)
    add_agent_options(parser)
    return parser

"""What is asked, and how: the options of ``research ask`` and ``research serve-agent``.

What the command line leaves open comes from the run that is asked, or from the folder of an
exported policy.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_rl.envs import Retriever
from research_rl.envs.protocols import Protocol, get_protocol
from research_rl.envs.system import printable
from research_rl.envs.web import check_installed
from research_rl.trainers.settings import (
    UsageError,
    distrust,
    read_run_config,
)

if TYPE_CHECKING:
    from research_rl.agents import ReSearchAgent, SamplingParams, ServedReSearchAgent
    from research_rl.envs.protocols import PromptChoice
    from research_rl.trainers.agent.asker import Asker

QUICKSTART = Path("runs/quickstart")


@dataclass
class Asked:
    """What is asked, once the command line and the run's config are put together."""

    index: str
    model: str | None = None
    server: str | None = None
    prompt: PromptChoice = "base"
    top_k: int = 5
    max_searches: int | None = None
    max_tokens: int = 2048
    max_result_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    api: str | None = None
    tokenizer: str | None = None
    dialect: str = "openai"
    protocol: str | Protocol = "research"
    max_chars: int = 32768
    stop: tuple[str, ...] | None = None

    @property
    def language(self) -> Protocol:
        """The protocol itself."""
        return get_protocol(self.protocol)

    @property
    def route(self) -> str:
        """The api of the server: text, unless a protocol of messages needs a chat."""
        chat = self.language.keeps_eos and self.tokenizer is None
        return self.api or ("chat" if chat else "completions")


def resolve(given: argparse.Namespace) -> Asked:
    """Return the settings that the command line means.

    What is not given comes from the run's ``config.yaml``: that of ``--run``, or of a finished
    quickstart where neither a model nor a server is named. The folder of an exported policy says
    for itself how it is to be asked.

    Raises:
        UsageError: there is no model, or no index.
        FileNotFoundError: the run has no config, or has not written its policy yet.
    """
    run = None if given.run is None else Path(given.run)
    if run is None and not (given.model or given.server) and _finished(QUICKSTART):
        run = QUICKSTART
    told = {} if run is None else from_run(run)
    # imported here, so that help does not wait for torch
    from research_rl.trainers.settings import protocol_of, read_policy_file

    if given.model and not given.server and Path(given.model).is_dir():
        told |= _limited(read_policy_file(Path(given.model)))
    named = {name: getattr(given, name, None) for name in Asked.__dataclass_fields__}
    told |= {name: value for name, value in named.items() if value is not None}
    if given.protocol is not None:
        told["protocol"] = protocol_of(given.protocol)
    if given.server:
        told["model"] = given.model
    if not (told.get("model") or told.get("server")):
        raise UsageError(
            "a model must be named: --run DIR (a finished run), --model DIR or Hugging Face id, or "
            "--server URL; or train one in minutes: research fit --config quickstart"
        )
    if told.get("tokenizer") and not told.get("server"):
        raise UsageError("--tokenizer must come with --server; a local model has its own")
    if not told.get("index"):
        raise UsageError(
            "an index must be named with --index DIR or URL; make one with "
            "research index build --corpus FILE --out DIR"
        )
    return Asked(**told)


def from_run(run: Path) -> dict[str, Any]:
    """Return what a run's ``config.yaml`` says about how its policy is to be asked.

    The prompt is that of the training, also where its file was changed since.
    ``${trainer.default_root_dir}`` is the folder in which the run lies now.

    Raises:
        FileNotFoundError: no config, or no exported policy.
        TrustError: the config asks for what only the command line grants.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"a run's folder must hold config.yaml, got {run} without one; name the folder that "
            "research fit wrote (trainer.default_root_dir)"
        )
    if not (run / "policy").is_dir():
        raise FileNotFoundError(
            f"a finished run must hold its policy, got no {run / 'policy'}; write it with "
            f"research export --ckpt {run / 'checkpoints' / 'best.ckpt'} --out {run / 'policy'}"
        )
    config = read_run_config(file, run)
    distrust(file)
    env, sampling = config["model"]["env"], config["model"]["sampling"]
    from research_rl.trainers.settings import asked_as, with_trained_prompt

    told = with_trained_prompt(_limited(asked_as(env, file, sampling)), run, file, exported=True)
    told["model"] = str(run / "policy")
    if isinstance(env.get("index"), str):
        told["index"] = _moved(env["index"], run)
    return {name: value for name, value in told.items() if value is not None}


def _limited(told: dict[str, Any]) -> dict[str, Any]:
    """Call the limit of a response as the command line does."""
    if "max_response_tokens" in told:
        told["max_tokens"] = told.pop("max_response_tokens")
    return told


def check_mcp() -> None:
    """Refuse to begin where the package ``mcp`` is missing.

    Raises:
        ImportError: it is.
    """
    check_installed("an MCP server")
    if importlib.util.find_spec("mcp") is None:
        raise ImportError("an MCP server needs mcp; run: pip install -e '.[agent]'")


def tell_searched(given: argparse.Namespace, settings: Asked) -> None:
    """Say where is searched, if that is a server that only the run names."""
    if given.index is None and settings.index.startswith(("http://", "https://")):
        sys.stderr.write(printable(f"searches {settings.index}, which the run names\n"))


def make_asker(settings: Asked, max_slots: int = 16) -> Asker:
    """Return what answers as the settings say.

    Args:
        settings: of the agent.
        max_slots: questions under way together on a local model.
    """
    import gymnasium as gym

    from research_rl.agents import SamplingParams
    from research_rl.trainers.agent.asker import Asker

    env = gym.make_vec(
        "research_rl.envs:ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        index=_retriever(settings.index),
        top_k=settings.top_k,
        max_searches=settings.max_searches,
        prompt=settings.prompt,
        protocol=settings.language,
        max_chars=settings.max_chars,
    )
    params = SamplingParams(
        settings.max_tokens,
        settings.max_result_tokens,
        temperature=settings.temperature,
        stop=settings.stop,
    )
    made = _local if settings.server is None else _served
    return Asker(made(settings, env, params), max_slots)


def _local(settings: Asked, env: Any, params: SamplingParams) -> ReSearchAgent:
    """An agent whose model is in this process."""
    from transformers.utils.logging import disable_progress_bar

    from research_rl.agents import ReSearchAgent
    from research_rl.agents.engines import StreamingEngine
    from research_rl.agents.methods import load_policy

    assert settings.model is not None
    if Path(settings.model).is_dir():  # a download keeps its bars
        disable_progress_bar()  # type: ignore[no-untyped-call]
    policy = load_policy(settings.model)
    engine = StreamingEngine(policy, lambda role, text: None)  # the asker has engines of its own
    return ReSearchAgent(policy, engine, env, params, settings.seed)


def _served(settings: Asked, env: Any, params: SamplingParams) -> ServedReSearchAgent:
    """An agent whose model is on a server."""
    from research_rl.agents import OpenAIGenerator, ServedReSearchAgent

    assert settings.server is not None
    if settings.model is None:
        raise UsageError("--server must come with --model, the model's name on that server")
    api: Any = settings.route
    dialect: Any = settings.dialect
    generator = OpenAIGenerator(
        settings.server, settings.model, api, dialect, tokenizer=settings.tokenizer
    )
    return ServedReSearchAgent(generator, env, params, settings.seed)


def _retriever(index: str) -> Retriever:
    from research_rl.envs.retrieval.index import load_retriever
    from research_rl.envs.retrieval.web import RemoteRetriever

    if index.startswith(("http://", "https://")):
        return RemoteRetriever(index)
    return load_retriever(index)


def _finished(run: Path) -> bool:
    return (run / "config.yaml").is_file() and (run / "policy").is_dir()


def _moved(index: str, run: Path) -> str:
    """The run's index, looked for inside the run where the recorded path is gone."""
    if Path(index).exists():
        return index
    inside = run / "world" / "index"
    return str(inside) if inside.is_dir() else index


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which agent answers, and how."""
    add = parser.add_argument
    add("--run", metavar="DIR", help="a finished run: its policy, index, prompt and limits")
    add("--model", metavar="NAME", help="folder or Hugging Face id; with --server its name there")
    add("--server", metavar="URL", help="an OpenAI-compatible server instead of a local model")
    add(
        "--api",
        choices=("completions", "chat"),
        help="of the server (default: completions; chat where the protocol needs it)",
    )
    add("--dialect", choices=("openai", "vllm", "sglang"), help="of the server (default: openai)")
    add(
        "--tokenizer",
        metavar="NAME",
        help="the server's model, folder or Hugging Face id: counts "
        "tokens, and renders chats for --api completions",
    )
    add("--index", metavar="DIR", help="a search index, or the url of a retrieval server")
    add("--prompt", metavar="TEXT", help="base (default), instruct, a text with {prompt}, a file")
    add(
        "--protocol",
        metavar="NAME",
        help="research (default), search_r1, hermes, ... or a class path; a run's own by default",
    )
    add("--top-k", type=int, metavar="N", help="passages of a search (default: 5)")
    add("--max-searches", type=int, metavar="N", help="searches at most (default: no limit)")
    add("--max-tokens", type=int, metavar="N", help="tokens at most, results included (2048)")
    add("--max-result-tokens", type=int, metavar="N", help="of one result at most (no limit)")
    add("--temperature", type=float, metavar="T", help="0 is greedy (default)")
    add("--seed", type=int, metavar="N", help="of sampling")

"""The command ``research ask``: one question, answered in the terminal while you watch.

Thoughts, searches and results are printed as they come. Without options it asks the policy of a
finished quickstart: ``research ask "Who directed Alien?"``.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from research_rl.envs import Question, Retriever, TextStyle, paint, shows_colour
from research_rl.envs.protocols import RESEARCH, Protocol, get_protocol
from research_rl.envs.system import CommandLine, printable
from research_rl.trainers.settings import (
    UsageError,
    distrust,
    read_run_config,
)

if TYPE_CHECKING:
    from research_rl.agents.methods import Agent, Message, Prediction
    from research_rl.envs.protocols import PromptChoice

QUICKSTART = Path("runs/quickstart")
_NO_ANSWER = {
    "no_answer": "the model ended without an answer",
    "search_budget": "the searches are used up and the model asked for more",
    "turn_budget": "the turns are used up",
    "length": "the tokens are used up; raise --max-tokens",
    "error": "the server failed",
}


class Screen:
    """Writes an episode to a terminal as it happens.

    Args:
        out: where to.
        colour: use escape codes.
        protocol: the language of the episode.
    """

    def __init__(self, out: TextIO, colour: bool, protocol: Protocol = RESEARCH) -> None:
        self._out, self._colour, self._protocol = out, colour, protocol

    def write(self, role: str, text: str) -> None:
        """Write a piece of the episode: the model's text as it comes, a result indented."""
        if role == "model":
            self._put("text", text)
            return
        body = textwrap.indent(self._protocol.content(text), "    │ ", lambda _: True)
        self._put("text", "\n")
        self._line("result", body)

    def end(self, prediction: Prediction) -> None:
        """Write the answer, or why there is none, and what it cost."""
        self._put("text", "\n\n")
        if prediction.text:
            self._line("answer", f"Answer: {prediction.text}")
        else:
            why = _NO_ANSWER.get(prediction.finish_reason, "the answer is empty")
            why = f"{why}: {prediction.error}" if prediction.error else why
            self._line("error", f"No answer: {why}.")
        searches = len(prediction.queries)
        self._line(
            "note",
            f"{searches} search{'' if searches == 1 else 'es'}, "
            f"{prediction.sampled_tokens} tokens written, {prediction.seconds:.1f} s",
        )

    def head(self, text: str) -> None:
        """Write a heading."""
        self._line("heading", text)

    def _line(self, style: TextStyle, text: str) -> None:
        self._put(style, text)
        self._put("text", "\n")

    def _put(self, style: TextStyle, text: str) -> None:
        self._out.write(paint(style, text, self._colour))
        self._out.flush()


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
    temperature: float = 0.0
    seed: int = 0
    api: str | None = None
    tokenizer: str | None = None
    dialect: str = "openai"
    protocol: str | Protocol = "research"

    @property
    def language(self) -> Protocol:
        """The protocol itself."""
        return get_protocol(self.protocol)

    @property
    def route(self) -> str:
        """The api of the server: text, unless a protocol of messages needs a chat."""
        chat = self.language.keeps_eos and self.tokenizer is None
        return self.api or ("chat" if chat else "completions")


def main(args: Sequence[str]) -> None:
    """Run the command."""
    given = _parser().parse_args(list(args))
    settings = resolve(given)
    if given.index is None and settings.index.startswith(("http://", "https://")):
        sys.stderr.write(printable(f"searches {settings.index}, which the run names\n"))
    screen = Screen(sys.stdout, shows_colour(sys.stdout), settings.language)
    agent = make_agent(settings, screen.write)
    if given.question:
        _ask(agent, " ".join(given.question), screen)
        return
    screen.head("Ask a question; Ctrl-D ends.")
    while (question := _next_question()) is not None:
        if question:
            _ask(agent, question, screen)


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
        told |= read_policy_file(Path(given.model))
    named = {name: getattr(given, name) for name in Asked.__dataclass_fields__}
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


def ask_options() -> list[str]:
    """Return the names of the options that say what is asked, and how."""
    return ["run", *Asked.__dataclass_fields__]


def agent_for(
    given: argparse.Namespace, on_text: Callable[[str, str], None] | None = None
) -> Agent:
    """Return the agent that the options of ``research ask`` mean.

    Args:
        given: a value for each of ``ask_options``, None where it is not given.
        on_text: is told each piece of text with who wrote it.

    Raises:
        UsageError: there is no model, or no index.
        FileNotFoundError: the run has no config, or has not written its policy yet.
    """
    return make_agent(resolve(given), on_text or (lambda role, text: None))


def from_run(run: Path) -> dict[str, Any]:
    """Return what a run's ``config.yaml`` says about how its policy is to be asked.

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
    config = read_run_config(file)
    distrust(file)
    env, sampling = config["model"]["env"], config["model"]["sampling"]
    from research_rl.trainers.settings import asked_as

    told = asked_as(env, file)
    told |= {"model": str(run / "policy"), "max_tokens": sampling.get("max_response_tokens")}
    if isinstance(env.get("index"), str):
        told["index"] = _moved(env["index"], run)
    return {name: value for name, value in told.items() if value is not None}


def make_agent(settings: Asked, on_text: Callable[[str, str], None]) -> Agent:
    """Return the agent that the settings describe; it passes its text on while it writes."""
    import gymnasium as gym

    from research_rl.agents import SamplingParams
    from research_rl.agents.methods import ReSearchAgent

    env = gym.make_vec(
        "research_rl.envs:ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        index=_retriever(settings.index),
        top_k=settings.top_k,
        max_searches=settings.max_searches,
        prompt=settings.prompt,
        protocol=settings.language,
    )
    params = SamplingParams(settings.max_tokens, temperature=settings.temperature)
    if settings.server is not None:
        return _served(settings, env, params, on_text)
    from transformers.utils.logging import disable_progress_bar

    from research_rl.agents.engines import StreamingEngine
    from research_rl.agents.methods import load_policy

    assert settings.model is not None
    if Path(settings.model).is_dir():  # a download keeps its bars
        disable_progress_bar()  # type: ignore[no-untyped-call]
    policy = load_policy(settings.model)
    engine = StreamingEngine(policy, _Told(env, on_text))
    return ReSearchAgent(policy, engine, env, params, settings.seed)


class _Told:
    """Passes on what a local model is told and writes, as the environment has it.

    A turn is shown behind what the prompt has opened of it, a result without the chat template's
    words around it.
    """

    def __init__(self, env: Any, on_text: Callable[[str, str], None]) -> None:
        from research_rl.agents import vector_rows

        self._rows, self._on_text = vector_rows(env), on_text
        self._begun = -1

    def __call__(self, role: str, text: str) -> None:
        """Pass on a piece of text."""
        episode = self._rows.episodes[0]
        turns = len(episode.turns)
        if role != "model":
            text, self._begun = episode.results[-1], -1
        elif self._begun != turns:
            text = episode.opened.before(turns, episode.rules.protocol.keeps_eos) + text
            self._begun = turns
        self._on_text(role, text)


def _served(settings: Asked, env: Any, params: Any, on_text: Callable[[str, str], None]) -> Agent:
    """Return an agent whose model is on a server; it prints each turn when it is complete."""
    from research_rl.agents.methods import OpenAIGenerator, ServedReSearchAgent

    assert settings.server is not None
    if settings.model is None:
        raise UsageError("--server must come with --model, the model's name on that server")
    api: Any = settings.route
    dialect: Any = settings.dialect
    generator = OpenAIGenerator(
        settings.server, settings.model, api, dialect, tokenizer=settings.tokenizer
    )

    def tell(question: Question, step: Message) -> None:
        on_text(step.role, step.text)

    return ServedReSearchAgent(generator, env, params, settings.seed, tell)


def _retriever(index: str) -> Retriever:
    from research_rl.envs.retrieval.index import load_retriever
    from research_rl.envs.retrieval.web import RemoteRetriever

    if index.startswith(("http://", "https://")):
        return RemoteRetriever(index)
    return load_retriever(index)


def _ask(agent: Agent, question: str, screen: Screen) -> None:
    """Answer one question; Ctrl-C stops this answer and not the command."""
    screen.head(f"Question: {question}")
    try:
        screen.end(agent.answer([Question("ask", question, ("",))])[0])
    except KeyboardInterrupt:
        screen.head("\nstopped")


def _next_question() -> str | None:
    """The next line that the user types; None at the end."""
    try:
        return input("\n> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _finished(run: Path) -> bool:
    return (run / "config.yaml").is_file() and (run / "policy").is_dir()


def _moved(index: str, run: Path) -> str:
    """The run's index, looked for inside the run where the recorded path is gone."""
    if Path(index).exists():
        return index
    inside = run / "world" / "index"
    return str(inside) if inside.is_dir() else index


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research ask",
        description="Ask one question, or several in a row when none is given; the model thinks "
        "and searches before your eyes. Without a model, a finished quickstart run is asked.",
    )
    add = parser.add_argument
    add("question", nargs="*", help="what to ask")
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
    add("--temperature", type=float, metavar="T", help="0 is greedy (default)")
    add("--seed", type=int, metavar="N", help="of sampling")
    return parser

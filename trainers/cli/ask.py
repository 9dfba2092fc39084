"""The command ``research ask``: one question, answered in the terminal while you watch.

Thoughts, searches and results are printed as they come. Without options it asks the policy of a
finished quickstart: ``research ask "Who directed Alien?"``.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from research_rl.envs import TextStyle, paint, shows_colour
from research_rl.envs.protocols import RESEARCH, Protocol
from research_rl.envs.system import CommandLine
from research_rl.trainers.agent import add_agent_options, make_asker, resolve, tell_searched
from research_rl.trainers.cli.serve_agent import ADDRESS, add_address, start
from research_rl.trainers.settings import UsageError

if TYPE_CHECKING:
    from research_rl.agents.methods import Prediction
    from research_rl.trainers.agent import Asker, Stretch


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
            from research_rl.trainers.agent import why_none  # with what it imports, when needed

            self._line("error", f"No answer: {why_none(prediction)}.")
        found = (p.source for result in prediction.passages for p in result if p.source)
        if sources := list(dict.fromkeys(found)):
            self._line("note", "Found in: " + "; ".join(sources))
        searches = len(prediction.queries)
        self._line(
            "note",
            f"{searches} search{'' if searches == 1 else 'es'}, "
            f"{prediction.sampled_tokens} tokens written, {prediction.seconds:.1f} s",
        )

    def head(self, text: str) -> None:
        """Write a heading."""
        self._line("heading", text)

    def note(self, text: str) -> None:
        """Write what is to be known before the answer."""
        self._line("error", text)

    def _line(self, style: TextStyle, text: str) -> None:
        self._put(style, text)
        self._put("text", "\n")

    def _put(self, style: TextStyle, text: str) -> None:
        self._out.write(paint(style, text, self._colour))
        self._out.flush()


def main(args: Sequence[str]) -> None:
    """Run the command."""
    given = _parser().parse_args(list(args))
    if given.web:
        if given.question:
            raise UsageError("with --web questions are asked on the page; leave the question out")
        start(given, page=True)
        return
    told = [f"--{name.replace('_', '-')}" for name in ADDRESS if vars(given)[name] is not None]
    if told:
        raise UsageError(f"{told[0]} must come with --web; the terminal has no server")
    settings = resolve(given)
    tell_searched(given, settings)
    screen = Screen(sys.stdout, shows_colour(sys.stdout), settings.language)
    asker = make_asker(settings)
    if given.question:
        _ask(asker, " ".join(given.question), screen)
        return
    screen.head("Ask a question; Ctrl-D ends.")
    while (question := _next_question()) is not None:
        if question:
            _ask(asker, question, screen)


def _ask(asker: Asker, question: str, screen: Screen) -> None:
    """Answer one question; Ctrl-C stops this answer and not the command."""
    screen.head(f"Question: {question}")

    def hear(stretch: Stretch) -> None:
        screen.write(stretch.role, stretch.text)

    for note in asker.notes(question):
        screen.note(note)
    try:
        screen.end(asker.answer([question], [hear])[0])
    except KeyboardInterrupt:
        screen.head("\nstopped")


def _next_question() -> str | None:
    """The next line that the user types; None at the end."""
    try:
        return input("\n> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research ask",
        description="Ask one question, or several in a row when none is given; the model thinks "
        "and searches before your eyes. Without a model, a finished quickstart run is asked.",
    )
    add = parser.add_argument
    add("question", nargs="*", help="what to ask")
    add("--web", action="store_true", help="ask on a page in the browser, served from here")
    add_address(parser)
    add_agent_options(parser)
    return parser

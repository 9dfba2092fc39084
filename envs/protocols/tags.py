r"""The tag language between policy and environment, as pure functions on text.

A turn of the policy is free text that ends in ``</search>`` (the only stop string) or, behind
``<answer> ... \boxed{x} ... </answer>``, at the end of the sequence. The environment answers a
search with one ``<result>`` block. No function of this module raises, whatever the string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from research_rl.envs.types import Passage

STOP = "</search>"
"""The stop string of a turn."""
NOTHING_TO_SEARCH = "nothing to search"
"""The text of the result of an empty query."""
NOTHING_FOUND = "no passage found"
"""What a search is answered that no passage matches."""
BUDGET_USED = "The search budget is used: answer now."
"""The end of the last result that an episode with ``max_searches`` gets."""

_TAG = re.compile(r"<(/?)(think|search|result|answer)>")
_BRACE = re.compile(r"(?<!\\)\\+boxed\s*\{|\\[{}]|[{}]")  # the lookbehind keeps runs of \ linear


@dataclass(frozen=True)
class Search:
    """The policy asks for passages; an empty query asks for nothing."""

    query: str


@dataclass(frozen=True)
class Answer:
    r"""The policy answers; ``text`` is what the last ``\boxed{}`` holds, as it was written."""

    text: str


@dataclass(frozen=True)
class Malformed:
    """The turn neither searches nor answers; ``reason`` says what is missing."""

    reason: str


Action: TypeAlias = Search | Answer | Malformed


@dataclass(frozen=True)
class Segment:
    """A piece of the response and who wrote it."""

    kind: Literal["policy", "env"]
    text: str


Kind: TypeAlias = Literal["think", "search", "result", "answer", "text"]
BLOCKS: tuple[Kind, ...] = ("think", "search", "answer")
"""The kinds of block that a policy writes."""


class Part(NamedTuple):
    """A block of a turn, or the text between two blocks.

    Args:
        kind: the name of the block's tags; "text" outside of all.
        text: what it holds, without its tags.
        closed: False for a block whose closing tag is missing.
    """

    kind: Kind
    text: str
    closed: bool = True

    @property
    def written(self) -> str:
        """The part as it stands in the turn, with its tags."""
        if self.kind == "text":
            return self.text
        return f"<{self.kind}>{self.text}" + f"</{self.kind}>" * self.closed


def parts(turn: str, kinds: Sequence[Kind] = BLOCKS) -> list[Part]:
    """Cut a turn at its tags; joined, what was ``written`` is the turn again.

    A block reaches from its opening tag to the next closing tag of its kind, or else to the end;
    other tags inside it are text.

    Args:
        turn: any text.
        kinds: the blocks to cut out; tags of others are text.

    >>> [(part.kind, part.text) for part in parts("<think> who? </think><search> boss of")]
    [('think', ' who? '), ('search', ' boss of')]
    """
    found: list[Part] = []
    begin = 0
    for match in re.finditer(rf"<({'|'.join(kinds)})>(.*?)(</\1>|\Z)", turn, re.DOTALL):
        found += _between(turn[begin : match.start()])
        kind = next(kind for kind in kinds if kind == match[1])
        found.append(Part(kind, match[2], closed=match[3] != ""))
        begin = match.end()
    return found + _between(turn[begin:])


def _between(text: str) -> list[Part]:
    return [Part("text", text)] if text else []


def parse_action(turn: str) -> Action:
    r"""Return what a turn asks for.

    A turn with ``</search>`` and no complete answer behind it is a search, also where characters
    follow the tag: the token that completes the stop string may hold more than it (``>\n``). The
    query stands between the last ``<search>`` and the last ``</search>``; without ``<search>`` it
    is empty.

    >>> parse_action("<think> t </think><search> boss of Bakset </search>")
    Search(query='boss of Bakset')
    >>> parse_action(r"<answer> It is \boxed{Domlor}. </answer>")
    Answer(text='Domlor')
    """
    head, stop, tail = turn.rpartition(STOP)
    answer = answer_content(tail)
    if stop and answer is None:
        _, opened, query = head.rpartition("<search>")
        return Search(query.strip() if opened else "")
    if answer is None:
        return Malformed("no <search> ... </search> and no <answer> ... </answer>")
    boxed = last_boxed(answer)
    return Malformed("no \\boxed{} in the answer") if boxed is None else Answer(boxed)


def answer_content(text: str) -> str | None:
    """Return what the last complete ``<answer> ... </answer>`` holds, None without one."""
    head, closed, _ = text.rpartition("</answer>")
    _, opened, content = head.rpartition("<answer>")
    return content if closed and opened else None


def last_boxed(text: str) -> str | None:
    r"""Return what the last complete ``\boxed{...}`` holds, None without one.

    Braces are balanced. Of nested boxes the inner one counts; a box that is not closed does not.

    >>> last_boxed(r"\boxed{x_{1}} or \boxed {y")
    'x_{1}'
    """
    opened: list[tuple[int, bool]] = []
    start, found = -1, None
    for match in _BRACE.finditer(text):
        token = match[0]
        if token == "}" and opened:
            begin, box = opened.pop()
            if box and begin > start:
                start, found = begin, text[begin : match.start()]
        elif token.endswith("{") and token != "\\{":
            opened.append((match.end(), token != "{"))
    return found


def escape_tags(text: str) -> str:
    """Return ``text`` with the protocol's tags made unreadable as tags (``<`` as ``&lt;``)."""
    return _TAG.sub(lambda match: "&lt;" + match[0][1:], text)


def render_result(passages: Sequence[Passage], note: str = "", escape: bool = True) -> str:
    """Return the block that answers a search.

    Args:
        passages: what was found, best first; their contents are joined by blank lines.
        note: a paragraph of the environment's own behind the passages.
        escape: make protocol tags inside the passages unreadable as tags.

    >>> render_result([Passage("7", "boss of Bakset\\nthe boss of Bakset is Domlor .")])
    ' <result>\\nboss of Bakset\\nthe boss of Bakset is Domlor .\\n</result>'
    """
    contents = [escape_tags(p.contents) if escape else p.contents for p in passages]
    body = "\n\n".join([*contents, note] if note else contents).strip()
    return f" <result>\n{body}\n</result>"


def result_content(block: str) -> str:
    """Return what a result block holds, without spaces around it; a text that is no block, whole.

    >>> result_content(render_result([Passage("7", "Bakset\\nthe boss of Bakset is Domlor .")]))
    'Bakset\\nthe boss of Bakset is Domlor .'
    """
    text = block.strip()
    if text.startswith("<result>") and text.endswith("</result>"):
        return text.removeprefix("<result>").removesuffix("</result>").strip()
    return text


def format_error(segments: Sequence[Segment]) -> str | None:
    r"""Say what is wrong with the form of a finished response; None if nothing is.

    Only what the policy wrote is read. Each of its turns but the last must end in one search; the
    last must end in one answer, outside of any thought, that holds a ``\boxed{}`` with something
    in it. There must be a thought somewhere. Inside a thought ``<search>`` and ``<answer>`` are
    words like others; text between the tags is free, behind the answer it is not.
    """
    turns = [segment.text for segment in segments if segment.kind == "policy"]
    if not turns:
        return "the policy wrote nothing"
    thoughts = 0
    for number, turn in enumerate(turns, 1):
        reader = _Reader()
        error = reader.read(turn, final=number == len(turns))
        if error is not None:
            return error
        thoughts += reader.thoughts
    if not thoughts:
        return "no <think> ... </think>"
    boxed = last_boxed(reader.answer)
    if boxed is None:
        return "no \\boxed{} in the answer"
    return None if boxed.strip() else "the \\boxed{} is empty"


_OPENED_BY = {"<think>": "think", "<search>": "search", "<answer>": "answer"}
_CLOSED_BY = {"think": "</think>", "search": STOP, "answer": "</answer>"}
_MENTIONS = {"<search>", "<answer>", "</answer>"}  # inside a thought these are words like others


class _Reader:
    """The state machine of one turn; ``state`` is text, think, search, answer or over."""

    def __init__(self) -> None:
        self.state = "text"
        self.last_tag = ""
        self.thoughts = 0
        self.answer = ""

    def read(self, turn: str, final: bool) -> str | None:
        """Return what is wrong with the turn; the last one must answer, the others search."""
        begin = 0
        for match in _TAG.finditer(turn):
            error = self._step(match[0], turn[begin : match.start()])
            if error is not None:
                return error
            begin = match.end()
        if self.state in _CLOSED_BY:
            return f"<{self.state}> is not closed"
        if final and self.last_tag != "</answer>":
            return "no <answer> ... </answer>"
        if not final and self.last_tag != STOP:
            return "a turn before the last does not end in a search"
        if final and turn[begin:].strip():
            return "text behind the answer"
        return None

    def _step(self, tag: str, text: str) -> str | None:
        """Take one tag and the text in front of it; return what is wrong with it."""
        if tag in ("<result>", "</result>"):
            return f"the policy wrote {tag}"
        if self.state == "over":
            return f"{tag} behind {self.last_tag}"
        if self.state == "text":
            if tag not in _OPENED_BY:
                return f"{tag} without <{tag[2:]}"
            self.state = _OPENED_BY[tag]
        elif tag == _CLOSED_BY[self.state]:
            self.thoughts += self.state == "think"
            if self.state == "answer":
                self.answer = text
            self.state = "text" if self.state == "think" else "over"
        elif self.state != "think" or tag not in _MENTIONS:
            return f"{tag} inside <{self.state}>"
        self.last_tag = tag
        return None

"""Rollouts to look at: one as plain text, many as a single HTML page that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from research_rl.agents import Rollout
from research_rl.envs import Question
from research_rl.envs.protocols import Search, parse_action
from research_rl.trainers.viewer.html import html_page

Kind = Literal["think", "search", "result", "answer", "text"]
_Verdict = Literal["right", "wrong", "format"]


class Part(NamedTuple):
    """A stretch of a response: what it is and what it says, without its tags."""

    kind: Kind
    text: str


_BLOCK = re.compile(r"<(think|search|answer)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_RESULT = re.compile(r"\A\s*<result>\n?(.*?)\n?</result>\s*\Z", re.DOTALL)
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_COLOURS: dict[Kind, str] = {
    "think": "\x1b[90m",
    "search": "\x1b[34m",
    "result": "\x1b[33m",
    "answer": "\x1b[32m",
    "text": "",
}
_RESET = "\x1b[0m"
_COLUMNS = ("reward", "f1", "prediction", "format_error", "finish_reason")
_RULE = "-" * 72


def turn_parts(turn: str) -> list[Part]:
    """Cut what the policy wrote in one turn at its tags; an unclosed tag reaches to the end.

    >>> turn_parts("<think> who? </think><search> boss of Bakset </search>")
    [Part(kind='think', text='who?'), Part(kind='search', text='boss of Bakset')]
    """
    parts: list[Part] = []
    begin = 0
    for match in _BLOCK.finditer(turn):
        parts += _loose(turn[begin : match.start()])
        parts.append(Part(match[1], match[2].strip()))  # type: ignore[arg-type]
        begin = match.end()
    return parts + _loose(turn[begin:])


def _loose(text: str) -> list[Part]:
    return [Part("text", text.strip())] if text.strip() else []


def result_part(text: str) -> Part:
    """Return what a result block holds."""
    inside = _RESULT.match(text)
    return Part("result", (inside[1] if inside else text).strip())


def rollout_parts(rollout: Rollout) -> list[Part]:
    """Return the response in order: the parts of each turn, then the result that followed it."""
    parts: list[Part] = []
    for number, turn in enumerate(rollout.turns):
        parts += turn_parts(turn)
        if number < len(rollout.results):
            parts.append(result_part(rollout.results[number]))
    return parts


def verdict(rollout: Rollout) -> _Verdict:
    """Sort a rollout: ``format`` if its form is wrong, else whether it is an exact match."""
    if rollout.reward.format_error is not None:
        return "format"
    return "right" if rollout.reward.em == 1.0 else "wrong"


def rollout_text(rollout: Rollout, advantage: float | None = None, colour: bool = False) -> str:
    """Return one rollout as readable lines: question, gold answers, response, verdict.

    Control characters are shown as symbols, so retrieved text cannot steer a terminal.

    Args:
        rollout: what to show.
        advantage: what training made of its reward.
        colour: mark thoughts, searches, results and answers with ANSI colours.
    """
    question = rollout.question
    lines = [_line("question", question.text), _line("gold", " | ".join(question.answers)), _RULE]
    for kind, text in rollout_parts(rollout):
        line = _line(kind, text)
        code = _COLOURS[kind] if colour else ""
        lines.append(f"{code}{line}{_RESET}" if code else line)
    return "\n".join([*lines, _RULE, _line("reward", _summary(rollout, advantage)), ""])


def _line(label: str, text: str) -> str:
    return f"{label:<10}" + text.translate(_CONTROL).replace("\n", "\n" + " " * 10)


def _summary(rollout: Rollout, advantage: float | None) -> str:
    reward, searches = rollout.reward, rollout.num_searches
    facts = [f"{reward.value:.2f}", f"F1 {reward.f1:.2f}"]
    facts.append(f"{searches} search" + "es" * (searches != 1))
    if advantage is not None:
        facts.append(f"advantage {advantage:+.2f}")
    facts.append(f"finished: {rollout.finish_reason or 'unknown'}")
    if reward.format_error is not None:
        facts.append(f"format error: {reward.format_error}")
    return " | ".join(facts)


def rollouts_html(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float] | None = None,
    title: str = "Rollouts",
    step: int | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> str:
    """Return one HTML page with every rollout in it, to be opened from disk.

    Rollouts of one question stand together; the page renders only the one that is selected. It
    loads nothing and is pure ASCII but for its own symbols, so any string may be in a rollout.

    Args:
        rollouts: what to show, in any order.
        advantages: one for each rollout.
        title: heading of the page.
        step: the training step at which they were written.
        decode: from token ids to text; given, the page can show each token with its probability
            and whether the loss reads it.

    Raises:
        ValueError: there are not as many advantages as rollouts.
    """
    if advantages is not None and len(advantages) != len(rollouts):
        raise ValueError(
            f"advantages must be one for each of {len(rollouts)} rollouts, got {len(advantages)}"
        )
    data: dict[str, Any] = {"groups": _groups(rollouts, advantages, decode is not None)}
    if decode is not None:
        # Of two equal tokens the second: some tokenizers drop the space of the first.
        ids = sorted({i for rollout in rollouts for i in rollout.sequence.response_ids})
        data["vocabulary"] = {i: decode([i, i])[len(decode([i])) :] for i in ids}
    heading = title if step is None else f"{title} \N{MIDDLE DOT} step {step}"
    return html_page("rollouts.html", title=heading, data=_finite(data))


def _groups(
    rollouts: Sequence[Rollout], advantages: Sequence[float] | None, tokens: bool
) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for number, rollout in enumerate(rollouts):
        question = rollout.question
        group = groups.setdefault((question.id, question.text), _question_row(question))
        advantage = None if advantages is None else float(advantages[number])
        group["rollouts"].append(_rollout_row(rollout, advantage, tokens))
    return list(groups.values())


def _question_row(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.text,
        "answers": list(question.answers),
        "hops": question.metadata.get("hops"),
        "gold": [str(i) for i in question.metadata.get("gold_ids", ())],
        "rollouts": [],
    }


def _rollout_row(rollout: Rollout, advantage: float | None, tokens: bool) -> dict[str, Any]:
    row, sequence = rollout.to_row(), rollout.sequence
    shown = {name: row[name] for name in _COLUMNS} | {
        "verdict": verdict(rollout),
        "advantage": advantage,
        "searches": rollout.num_searches,
        "sampled": sum(sequence.loss_mask),
        "given": len(sequence.loss_mask) - sum(sequence.loss_mask),
        "parts": [list(part) for part in rollout_parts(rollout)],
        "found": list(_found(rollout)),
    }
    if tokens:
        masked = zip(sequence.loss_mask, sequence.logprobs, strict=True)
        shown["ids"] = sequence.response_ids
        shown["logprobs"] = [round(float(p), 3) if written else None for written, p in masked]
    return shown


def _found(rollout: Rollout) -> Iterator[list[str]]:
    """Yield the passage ids behind each result; none where nothing was retrieved."""
    retrieved = list(zip(rollout.queries, rollout.passage_ids, strict=False))
    for turn, _ in zip(rollout.turns, rollout.results, strict=False):
        action = parse_action(turn)
        asked = isinstance(action, Search) and bool(retrieved) and action.query == retrieved[0][0]
        yield [str(i) for i in retrieved.pop(0)[1]] if asked else []


def _finite(value: Any) -> Any:
    """Return ``value`` with None for each number that JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value

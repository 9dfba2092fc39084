"""Rollouts to look at: one as plain text, many as a single HTML page.

The page loads nothing, so it can be opened from disk, sent to somebody and kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from research_rl.agents import Rollout, TextOnly
from research_rl.envs import Question, paint, printable
from research_rl.envs.protocols import RESEARCH, Part, Protocol
from research_rl.trainers.viewer.html import html_page

_Verdict = Literal["right", "wrong", "format"]
_COLUMNS = ("reward", "f1", "prediction", "format_error", "finish_reason")

_RULE = "-" * 72


def turn_parts(turn: str, protocol: Protocol = RESEARCH) -> list[Part]:
    """Cut what the policy wrote in one turn into its blocks, without spaces around and between.

    >>> turn_parts("  <think> who? </think>  ")
    [Part(kind='think', text='who?', closed=True)]
    """
    found = (part._replace(text=part.text.strip()) for part in protocol.parts(turn))
    return [part for part in found if part.kind != "text" or part.text]


def rollout_parts(rollout: Rollout) -> list[Part]:
    """Return the response in order: the parts of each turn, then the result that followed it."""
    shown: list[Part] = []
    protocol = rollout.protocol
    for number, turn in enumerate(rollout.whole_turns):
        shown += turn_parts(turn, protocol)
        if number < len(rollout.results):
            shown.append(Part("result", protocol.content(rollout.results[number])))
    return shown


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
        advantage: that training computed for it, if any.
        colour: mark thoughts, searches, results and answers with ANSI colours.
    """
    question = rollout.question
    lines = [_line("question", question.text), _line("gold", " | ".join(question.answers)), _RULE]
    for kind, text, *_ in rollout_parts(rollout):
        lines.append(paint(kind, _line(kind, text), colour))
    return "\n".join([*lines, _RULE, _line("reward", _summary(rollout, advantage)), ""])


def _line(label: str, text: str) -> str:
    return f"{label:<10}" + printable(text).replace("\n", "\n" + " " * 10)


def _summary(rollout: Rollout, advantage: float | None) -> str:
    reward, searches = rollout.reward, rollout.num_searches
    facts = [f"{reward.value:.2f}", f"F1 {reward.f1:.2f}"]
    facts += [f"{name} {value:+.2f}" for name, value in reward.parts.items()]
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

    Rollouts of one question are listed together; the page renders only the selected one. It loads
    nothing, and a rollout may hold any text.

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
        # decoded after a copy of itself: some tokenizers drop the space of a first token
        ids = sorted({i for rollout in rollouts for i in rollout.sequence.response_ids})
        data["vocabulary"] = {i: decode([i, i])[len(decode([i])) :] for i in ids}
    heading = title if step is None else f"{title} \N{MIDDLE DOT} step {step}"
    return html_page("rollouts.html", title=heading, data=json_finite(data))


def _groups(
    rollouts: Sequence[Rollout], advantages: Sequence[float] | None, tokens: bool
) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for number, rollout in enumerate(rollouts):
        question = rollout.question
        group = groups.setdefault((question.id, question.text), _question_row(question))
        advantage = None if advantages is None else float(advantages[number])
        group["rollouts"].append(rollout_row(rollout, advantage, tokens))
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


def reward_terms(reward: Any) -> dict[str, float]:
    """Return the named parts of a reward; empty where it has none, and without what is no number.

    Args:
        reward: of a rollout, or a row of one; ``parts`` is the mapping that is looked for.
    """
    found = reward.get("parts") if isinstance(reward, Mapping) else getattr(reward, "parts", None)
    items = found.items() if isinstance(found, Mapping) else ()
    return {
        str(name): float(value)
        for name, value in items
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def rollout_row(rollout: Rollout, advantage: float | None, tokens: bool) -> dict[str, Any]:
    """Return what the pages' scripts read of a rollout; ``tokens`` adds each token."""
    row, sequence = rollout.to_row(), rollout.sequence
    shown = {name: row[name] for name in _COLUMNS} | {
        "verdict": verdict(rollout),
        "advantage": advantage,
        "searches": rollout.num_searches,
        "terms": reward_terms(rollout.reward),
        "sampled": None,
        "given": None,
        "parts": [[part.kind, part.text] for part in rollout_parts(rollout)],
        "found": list(_found(rollout)),
    }
    if not isinstance(sequence, TextOnly):
        shown["sampled"] = sum(sequence.loss_mask)
        shown["given"] = len(sequence.loss_mask) - shown["sampled"]
    if tokens:
        masked = zip(sequence.loss_mask, sequence.logprobs, strict=True)
        shown["ids"] = sequence.response_ids
        shown["logprobs"] = [round(float(p), 3) if written else None for written, p in masked]
    return shown


def _found(rollout: Rollout) -> Iterator[list[str]]:
    """Yield the passage ids of each result; an empty list where nothing was retrieved."""
    for places in rollout.searched:
        yield [str(i) for place in places for i in rollout.passage_ids[place]]


def json_finite(value: Any) -> Any:
    """Return ``value`` with None in place of infinities and NaN, which JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_finite(item) for key, item in value.items()}
    return [json_finite(item) for item in value] if isinstance(value, list) else value

"""Signs of illness in what a policy writes: pure functions of one turn's or one thought's text."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(/?)(think|search|result|answer)>")
_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_FREE_IN_THOUGHT = {"search", "answer"}  # a thought may speak of them, as the format check allows
_NGRAM = 4


def thoughts(turn: str) -> list[str]:
    """Return what stands between each ``<think>`` and the next ``</think>``."""
    return _THOUGHT.findall(turn)


def forges_result(turn: str) -> bool:
    """Whether the policy wrote a ``<result>`` tag, which only the environment may."""
    return "<result>" in turn or "</result>" in turn


def broken_tags(turn: str, cut: bool = False) -> bool:
    """Whether a tag is closed that was not opened, opened inside another, or never closed.

    ``<result>`` tags are not looked at (see forges_result), nor are searches and answers that a
    thought only speaks of.

    Args:
        turn: as the policy wrote it.
        cut: the tokens ran out in this turn, so that its last tag may stay open.

    >>> broken_tags("<think> a </think><search> b </search>")
    False
    >>> broken_tags("<think> a <think> b </think>")
    True
    """
    opened = ""
    for close, tag in _TAG.findall(turn):
        if tag == "result" or (opened == "think" and tag in _FREE_IN_THOUGHT):
            continue
        if bool(close) != bool(opened) or (close and tag != opened):
            return True
        opened = "" if close else tag
    return bool(opened) and not cut


def repetition(text: str, n: int = _NGRAM) -> float:
    """Return the share of a text's n-grams of words that occurred before in it, 0 to 1.

    >>> repetition("a b c d e f g h")
    0.0
    >>> repetition("no " * 13)
    0.9
    """
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0

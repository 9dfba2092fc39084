"""Signs of a collapse in what a policy writes: pure functions of the text of a turn or a thought.

A policy that writes ``<result>`` itself, or one word over and over, gives such a sign.
"""

from __future__ import annotations

import re

_TAG = re.compile(r"<(/?)(think|search|result|answer)>")
_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_FREE_IN_THOUGHT = {"search", "answer"}  # a thought may name them, as in the check of the format
_NGRAM = 4


def thoughts(turn: str) -> list[str]:
    """Return the text between each ``<think>`` and the next ``</think>``."""
    return _THOUGHT.findall(turn)


def forges_result(turn: str) -> bool:
    """Return whether the policy wrote a ``<result>`` tag, which only the environment may write."""
    return "<result>" in turn or "</result>" in turn


def broken_tags(turn: str, cut: bool = False) -> bool:
    """Return whether a tag is closed but not open, opened inside of another, or never closed.

    ``<result>`` tags are ignored (see forges_result), and so are search and answer tags inside of
    a thought.

    Args:
        turn: as the policy wrote it.
        cut: whether the tokens ran out in this turn, so that its last tag may stay open.

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
    """Return the share of a text's word n-grams that occurred earlier in it, 0 to 1.

    >>> repetition("a b c d e f g h")
    0.0
    >>> repetition("no " * 13)
    0.9
    """
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0

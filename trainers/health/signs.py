"""Signs of a collapse in what a policy writes: pure functions of the text of a turn or a thought.

A policy that writes ``<result>`` itself, or one word over and over, gives such a sign.
"""

from __future__ import annotations

from research_rl.envs.protocols import Kind, parts

_CLOSING = ("</think>", "</search>", "</answer>")
_OPENING = ("<think>", "<search>", "<answer>")
_WRONG_IN: dict[Kind, tuple[str, ...]] = {
    "text": _CLOSING,
    "think": ("<think>",),  # a thought may speak of the others, as the format check allows
    "search": _OPENING + _CLOSING,
    "answer": _OPENING + _CLOSING,
}
_NGRAM = 4


def thoughts(turn: str) -> list[str]:
    """Return the text between each ``<think>`` and the next ``</think>``."""
    return [part.text for part in parts(turn, ["think"]) if part.kind == "think" and part.closed]


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
    found = parts(turn)
    if any(tag in part.text for part in found for tag in _WRONG_IN[part.kind]):
        return True
    return not (cut or all(part.closed for part in found))


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

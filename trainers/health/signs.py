"""Signs of illness in what a policy writes: pure functions of one turn's or one thought's text."""

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
    """Return what stands between each ``<think>`` and the next ``</think>``."""
    return [part.text for part in parts(turn, ["think"]) if part.kind == "think" and part.closed]


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
    found = parts(turn)
    if any(tag in part.text for part in found for tag in _WRONG_IN[part.kind]):
        return True
    return not (cut or all(part.closed for part in found))


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

"""Signs of a collapse in what a policy writes: pure functions of the text of a turn or a thought.

A policy that writes one word over and over gives such a sign. What is a broken block or a forged
result, the protocol says (``Protocol.broken``, ``Protocol.forges_reply``).
"""

from __future__ import annotations

from research_rl.envs.protocols import RESEARCH, Protocol, TagProtocol

_NGRAM = 4


def thoughts(turn: str, protocol: Protocol = RESEARCH) -> list[str]:
    """Return the text of each thought that the turn ends."""
    if isinstance(protocol, TagProtocol) and not protocol.searches_in_thought:
        found = protocol.parts(turn, ["think"])  # also one that stands inside another block
    else:
        found = protocol.parts(turn)
    return [part.text for part in found if part.kind == "think" and part.closed]


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

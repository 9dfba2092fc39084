"""How a dialect is spelled with one token for each word.

The tiny model's tokenizer splits at white space. A dialect glues its marks to words, as in
``Doc 1(Title: Bakset)``; here such marks become words of their own::

    spaced(get_protocol("hermes"), '{"query": "boss of Bakset"}}')
    # '{"query": " boss of Bakset "}}'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from research_rl.envs import Passage
from research_rl.envs.protocols import Found, Prompt, Protocol, TagProtocol, get_prompt

_GAP = "\ufdd0"
"""Stands for words of the world; no character, by Unicode's own promise."""
ROLES = ("<|user|>", "<|assistant|>", "<|tool|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
"""For dialects of chat messages; the marks of roles are words like others."""
THOUGHT = "I need {} ."
LAST_THOUGHT = "I know enough ."


@cache
def words_of(protocol: Protocol) -> tuple[str, ...]:
    """Return the words that a dialect itself writes, each once, in the order of a rollout."""
    passage = Passage("", f"{_GAP}\n{_GAP}")
    several = (_GAP, _GAP) if takes_pairs(protocol) else (_GAP,)
    texts = [
        protocol.begins,
        protocol.search(*several, thought=THOUGHT.format(_GAP)),
        protocol.reply([Found(_GAP, [passage]) for _ in several]),
        protocol.answer(_GAP, thought=LAST_THOUGHT).replace("The answer", "the answer"),
    ]
    pieces = [piece for text in texts for piece in text.split(_GAP)]
    roles = ROLES if protocol.keeps_eos else ()
    return tuple(dict.fromkeys([*roles, *(word for piece in pieces for word in piece.split())]))


def marks_of(protocol: Protocol) -> tuple[str, ...]:
    """Return those words that are no words of a language, the longest first."""
    marks = {word for word in words_of(protocol) if not word.isalnum() and word != "."}
    return tuple(sorted(marks, key=lambda word: (-len(word), word)))


def takes_pairs(protocol: Protocol) -> bool:
    """Return whether demonstrations put two queries into a turn: in tags that take several."""
    return isinstance(protocol, TagProtocol) and protocol.max_queries != 1


def spaced(protocol: Protocol, text: str) -> str:
    """Return a text with each mark of the dialect as a word of its own, one space apart."""
    pattern = "|".join(map(re.escape, marks_of(protocol)))
    return " ".join(re.sub(pattern, r" \g<0> ", text).split())


def bare_prompt(protocol: Protocol) -> Prompt:
    """Return the question alone as prompt, for a model too small to read instructions."""
    if protocol.keeps_eos:
        return get_prompt({"user": "{prompt}", "tools": False}, protocol)
    return get_prompt("{prompt}", protocol)


def search_turn(protocol: Protocol, queries: Sequence[str], opened: str) -> str:
    """Return a turn that searches, in words."""
    thought = THOUGHT.format(queries[0])
    return spaced(protocol, protocol.search(*queries, thought=thought, opened=opened))


def answer_turn(protocol: Protocol, answer: str, opened: str) -> str:
    """Return a turn that answers, in words."""
    turn = protocol.answer(answer, thought=LAST_THOUGHT, opened=opened)
    return spaced(protocol, turn.replace("The answer", "the answer"))

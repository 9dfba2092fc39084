r"""The answer in a model's text: where a method finds what is to be scored.

Rule, first that fits: the last ``\boxed{}``; what the last ``<answer> </answer>`` holds; what
follows the last ``answer is`` or ``Answer:``, to the end of its sentence; the first line that
holds anything.
"""

from __future__ import annotations

import re

from research_rl.agents.methods.sentences import first_sentence
from research_rl.envs.protocols import answer_content, last_boxed

SAYS_IT = re.compile(r"\banswer is\b\s*:?|(?:^|\n)\W*(?:final )?answer\s*:", re.IGNORECASE)
"""How a model announces its answer."""
_WRAP = " \t\r\n\"'“”‘’*`"


def says_answer(text: str) -> bool:
    """Return whether a thought says that it is the answer ("So the answer is: ...")."""
    return SAYS_IT.search(text) is not None


def extract_answer(text: str) -> str:
    r"""Return the answer that ``text`` gives, "" if it is blank.

    >>> extract_answer("The Amu Darya is longer. So the answer is: St. Louis, U.S. That is it.")
    'St. Louis, U.S'
    >>> extract_answer(r"It is \boxed{Domlor}.")
    'Domlor'
    >>> extract_answer("Paris\nQuestion: Who")
    'Paris'
    >>> extract_answer(r"<think> perhaps \boxed{Lima}, or")
    ''
    """
    text = without_open_thought(text)
    boxed = last_boxed(text)
    if boxed is not None and boxed.strip():
        return boxed.strip()
    if tagged := (answer_content(text) or "").strip():
        return _bare(tagged)
    said = list(SAYS_IT.finditer(text))
    if said:
        return _bare(first_sentence(_first_line(text[said[-1].end() :])))
    return _bare(_first_line(text))


def without_open_thought(text: str) -> str:
    """Return a text up to a thought that it does not end: what was said there is no answer yet."""
    end = text.rfind("</think>") + 1
    begin = text.find("<think>", end)
    return text if begin < 0 else text[:begin]


def behind_thoughts(text: str) -> str:
    """Return what stands behind the last thought of a text, "" if that is not finished."""
    return without_open_thought(text).rpartition("</think>")[2]


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _bare(text: str) -> str:
    """The text without quotes and emphasis around it and without its full stop."""
    return text.strip(_WRAP).rstrip(".").strip(_WRAP).strip()

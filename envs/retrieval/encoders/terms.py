"""What a word is, in any script: the terms that BM25 and the offline encoder count.

    >>> words("Zwei Städte")
    ['zwei', 'städte']
    >>> words("日本の首都")
    ['日本', '本の', 'の首', '首都']

The rule has a number, which an index keeps: one that was built by an older rule is searched by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Literal

from research_rl.envs.system import UNSPACED, folded, marks

WordRule = Literal[1, 2]
NEWEST_RULE: WordRule = 2
_WORD = re.compile(r"\w+")


def words(text: str, rule: WordRule = NEWEST_RULE) -> list[str]:
    """Return the terms of a text, English plurals folded.

    Rule 2: compatibility forms and letter case are folded (Unicode's NFKC and case folding), marks
    such as accents and vowel signs belong to their letter, and where a script sets no spaces
    between words each two neighbouring letters are a term. Rule 1, of former versions: runs of
    letters and digits in lower case. For texts in ASCII they are the same.

    Args:
        text: any text.
        rule: 1 or 2.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in (1, 2):
        raise ValueError(f"the rule of words must be 1 or {NEWEST_RULE}, got {rule!r}; update")
    if rule == 1 or text.isascii():
        return [fold_plural(word) for word in _WORD.findall(text.lower())]
    return [fold_plural(term) for term in _terms(text)]


def fold_plural(word: str) -> str:
    """Return the word without an English plural ending: cities -> city, films -> film."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else word[:-1]


def _terms(text: str) -> Iterator[str]:
    find, letters = _patterns()
    for run in find(folded(text)):
        if run.lastgroup == "spaced":
            yield run.group()
            continue
        each = letters(run.group())
        yield from map("".join, pairwise(each)) if len(each) > 1 else each


@cache
def _patterns() -> tuple[Callable[[str], Iterator[re.Match[str]]], Callable[[str], list[str]]]:
    """What finds runs of a text, and what cuts a run without spaces into letters."""
    letter = rf"[{UNSPACED}][{marks()}]*"
    spaced = rf"(?:(?![{UNSPACED}])\w[{marks()}]*)+"
    runs = re.compile(rf"(?P<paired>(?:(?=\w|[{marks()}]){letter})+)|(?P<spaced>{spaced})")
    return runs.finditer, re.compile(letter).findall

"""What a word is, in any script: the terms that BM25 and the offline encoder count.

    >>> words("Zwei Städte")
    ['zwei', 'städte']
    >>> words("日本の首都")
    ['日本', '本の', 'の首', '首都']

The rule has a number, which an index keeps: one that was built by an older rule is searched by it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Literal

WordRule = Literal[1, 2]
NEWEST_RULE: WordRule = 2
_WORD = re.compile(r"\w+")
# scripts that set no spaces between words: kana, Han and Bopomofo, Hangul, Thai, Lao, Myanmar,
# Khmer; Unicode 16 blocks. Hangul has spaces, but particles hang on its words
_PAIRED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u19e0-\u19ff\u3005-\u3007\u3040-\u30ff"
    r"\u3105-\u312f\u3130-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    r"\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U000323af"
)
_LAST_WITH_MARKS = 0x1F000
_DOT = "\u0307"  # what case folding leaves of a capital I with a dot


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


def folded(text: str) -> str:
    """Return a text without differences of letter case, width and composition.

    >>> folded("ＩＳＴＡＮＢＵＬ") == folded("İstanbul") == "istanbul"
    True
    """
    # folding may decompose, so that it is composed again at the end
    once = unicodedata.normalize("NFKC", text).casefold().replace("i" + _DOT, "i")
    return unicodedata.normalize("NFKC", once).replace("ı", "i")


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
    """What finds runs of a text, and what cuts a run without spaces into letters with their marks.

    A mark (categories Mn and Mc) belongs to the letter before it; Python's \\w knows none.
    """
    marks = _ranges(lambda sign: unicodedata.category(sign) in ("Mn", "Mc"))
    letter = rf"[{_PAIRED}][{marks}]*"
    spaced = rf"(?:(?![{_PAIRED}])\w[{marks}]*)+"
    runs = re.compile(rf"(?P<paired>(?:(?=\w|[{marks}]){letter})+)|(?P<spaced>{spaced})")
    return runs.finditer, re.compile(letter).findall


def _ranges(chosen: Callable[[str], bool]) -> str:
    """The characters for which ``chosen`` is true, as the inside of a character class."""
    found: list[list[int]] = []
    for code in range(0x300, _LAST_WITH_MARKS):
        if chosen(chr(code)):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in found)

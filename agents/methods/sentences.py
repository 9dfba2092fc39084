"""Sentences of a text, for methods that search after each one.

A full stop that is part of a name, a number or an abbreviation ends none: "J. R. Smith paid
$3.50." is one sentence. The sentences joined are the text, byte for byte.
"""

from __future__ import annotations

import re

_END = re.compile(r"""[.!?…]+["'”’)\]»*_]*(?=\s|$)|[。！？]["”’)\]」』]*|\n+(?=\S|$)""")
_OPENERS = "\"'“”‘’()[]"
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_NUMBERED = re.compile(r"\d+")
_LONGEST_WORD = 64
"""Characters looked at on either side of a full stop."""
_CLOSERS = "\"'”’)]»*_"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Titles and words that a name or a number follows: the sentence goes on whatever comes.
_ALWAYS = _words(
    """
    adj adm amb asst brig capt cmdr col cpl dr drs fr gen gov hon insp lt maj messrs mlle mme
    mr mrs ms mt msgr ph pres prof pvt rep revd rev sen sgt st ste supt vs cf e.g i.e viz feat
    ft
    """
)
# Words that are abbreviations where a number follows.
_COUNTED = _words(
    """
    no nos op vol vols pp p fig figs eq ch sec art ca approx b c d
    """
)
# Abbreviations that may end a sentence too: it goes on if what follows is not a capital.
_MAYBE = _words(
    """
    jr sr esq etc bros al inc ltd co corp llc plc bc ad b.c a.d ph.d m.d b.a m.a a.m p.m am pm
    ave blvd rd dept univ est jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu
    fri sat sun ed eds dist ext hr hrs min mins lb lbs oz cm km kg
    """
)
# Words that begin a sentence rather than go on with a name behind initials.
_STARTERS = _words(
    """
    a an and although after as at because before but by during each for from he her his how
    however i if in it its many most my on one our she since so some that the their then there
    therefore these they this those thus to under until we what when where which while who
    with you your
    """
)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of ``text``, each with the white space behind it.

    A sentence ends at ``. ! ? …`` with closing quotes and brackets, or at a line break. A full
    stop does not end it inside a number, behind a title (``St.``), behind initials (``J. R. R.``,
    ``U.S.``) unless a sentence plainly begins behind them, nor behind an abbreviation that small
    letters follow (``Inc. was``).

    >>> split_sentences("He was born in St. Louis. It lies in the U.S. state of Missouri.")
    ['He was born in St. Louis. ', 'It lies in the U.S. state of Missouri.']
    """
    sentences: list[str] = []
    begin = 0
    for match in _END.finditer(text):
        if match.start() < begin or not _ends(text, match, begin):
            continue
        end = match.end()
        while end < len(text) and text[end].isspace():
            end += 1
        if text[begin:end].strip():
            sentences.append(text[begin:end])
        elif sentences:
            sentences[-1] += text[begin:end]
        else:  # white space at the very beginning belongs to the first sentence
            continue
        begin = end
    if begin < len(text):
        sentences.append(text[begin:])
    return sentences


def first_sentence(text: str) -> str:
    """Return the first sentence of ``text`` without white space around it; "" if it has none."""
    sentences = split_sentences(text.lstrip())
    return sentences[0].strip() if sentences else ""


def _ends(text: str, match: re.Match[str], begin: int) -> bool:
    """Whether the punctuation found ends the sentence that begins at ``begin``."""
    if match[0].rstrip(_CLOSERS) != ".":
        return True
    before = text[max(begin, match.start() - _LONGEST_WORD) : match.start()]
    word = before.rsplit(maxsplit=1)[-1].strip(_OPENERS) if before.strip() else ""
    rest = text[match.end() : match.end() + _LONGEST_WORD].lstrip(" \t\r\f\v")
    if not rest or rest[0] == "\n":
        return True
    if match[0] != ".":  # a quote or bracket is closed behind the stop
        return not rest[0].islower()
    return _ends_behind(word, rest, alone=before.strip() == word)


def _ends_behind(word: str, rest: str, alone: bool) -> bool:
    """Whether a full stop ends a sentence between ``word`` and ``rest``.

    Args:
        word: what stands in front of the stop, without quotes.
        rest: what follows, not empty, from its first character that is not white space.
        alone: the word is all of the sentence so far.
    """
    bare = word.casefold()
    if bare in _ALWAYS:
        return False
    if bare in _COUNTED and rest[0].isdigit():
        return False
    if alone and (_NUMBERED.fullmatch(word) or len(word) == 1):
        return False  # "1. First," of a list
    if word.isupper() and _INITIALS.fullmatch(word):
        return _first_word(rest) in _STARTERS and rest[0].isupper()
    if bare in _MAYBE:
        return not (rest[0].islower() or rest[0].isdigit())
    return not rest[0].islower()


def _first_word(rest: str) -> str:
    found = re.match(r"\w+", rest.lstrip("\"'“‘("))
    return found[0].casefold() if found else ""

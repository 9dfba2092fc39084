"""A comparison of answers as a reader makes it: numbers as numbers, any script, C++ is not C.

The published formula (``answers.f1_score``) drops ASCII punctuation, so that 3.14 is 314 and -5 is
5, and knows no other script's marks. Evaluation keeps it, to be comparable. A policy that is *paid*
by it learns its errors, so the reward ``default`` compares the tokens of this module:

    >>> answer_tokens("The 1,500,000 people") == answer_tokens("1.5 million people。")
    True
    >>> answer_tokens("-5") == answer_tokens("5"), answer_tokens("C#") == answer_tokens("C++")
    (False, False)
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from functools import cache

from research_rl.envs.system import UNSPACED, folded, marks

_LONGEST = 20_000
"""Characters of an answer that are read; longer ones are no answers."""
_ARTICLES = frozenset({"a", "an", "the"})
_CLOSED = frozenset({"yes", "no", "noanswer"})
_UNITS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2212\ufe63\uff0d", "-"))
_SHORT = re.compile(r"(?<!\w)(?:[^\W\d_]\.){2,}")  # U.S. is US
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_RAISED = str.maketrans({sign: f"^{n}" for n, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})  # 10⁶ is not 106
_DROPPED = ("Cf", "Sc")  # what is invisible, and marks of currencies: -$5 is -5


def answer_tokens(text: str) -> tuple[str, ...]:
    """Return what is compared of an answer: words without articles, and numbers as such.

    Compatibility forms and letter case are folded, punctuation of any script and apostrophes fall,
    ``+`` and ``#`` stay behind a letter. Where a script sets no spaces each letter is a word. A
    number is written in one way, without separators of thousands and needless zeros, and multiplied
    by a word such as million behind it; one that begins with a 0, such as 007, stays as it is.
    """
    plain = folded(text[:_LONGEST].translate(_RAISED)).translate(_MINUS)
    kept = (c for c in plain if c not in "'’‘`" and unicodedata.category(c) not in _DROPPED)
    plain = "".join(kept)
    plain = _SHORT.sub(lambda match: match.group().replace(".", ""), plain)
    found: list[str] = []
    before: Decimal | None = None
    end = 0  # of the match before
    for match in _pattern().finditer(plain):
        token = match.group()
        near = not plain[end : match.start()].strip(" -")
        end = match.end()
        if match.lastgroup == "word" and before is not None and near and token in _UNITS:
            found[-1] = _written(before.scaleb(_UNITS[token]))
            before = None
        elif match.lastgroup == "word":
            before = None
            if token not in _ARTICLES:
                found.append(token)
        else:
            before = _value(token)
            found.append(token if before is None else _written(before))
    return tuple(found)


def fair_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return token F1 and exact match of a prediction, each the best over the answers.

    An answer without a token ("!!!") must be met literally, letter case and space aside. ``yes``
    and ``no`` share no credit with anything else, as in the published formula.
    """
    read, literal = answer_tokens(prediction), " ".join(prediction.casefold().split())
    best = 0.0
    for answer in answers:
        gold = answer_tokens(answer)
        if not gold:
            same = literal == " ".join(answer.casefold().split())
            best = max(best, float(bool(literal) and same))
        else:
            best = max(best, _f1(read, gold))
        if best == 1.0:
            break
    exact = any(read and read == answer_tokens(answer) for answer in answers)
    return best, float(exact or (best == 1.0 and not read))


def _f1(read: tuple[str, ...], gold: tuple[str, ...]) -> float:
    if read != gold and (_is_closed(read) or _is_closed(gold)):
        return 0.0
    common = (Counter(read) & Counter(gold)).total()
    return 2 * common / (len(read) + len(gold)) if common else 0.0


def _is_closed(tokens: tuple[str, ...]) -> bool:
    return len(tokens) == 1 and tokens[0] in _CLOSED


@cache
def _pattern() -> re.Pattern[str]:
    letter = rf"[^\W_{UNSPACED}][{marks()}]*"
    return re.compile(
        # a sign belongs to a number only where nothing stands before it: 1990-95 is a range
        rf"(?P<number>(?:(?<![^\W{UNSPACED}])(?<!\))[-+])?{_NUMBER})(?![^\W{UNSPACED}])|"
        rf"(?P<word>(?:{letter})+(?:[+#]+(?!\w))?|[{UNSPACED}][{marks()}]*)"
    )


def _value(token: str) -> Decimal | None:
    digits = token.lstrip("+-").replace(",", "")
    digits = f"0{digits}" if digits.startswith(".") else digits
    if len(digits) > 60 or (digits[0] == "0" and len(digits) > 1 and digits[1] != "."):
        return None
    value = Decimal(unicodedata.normalize("NFKC", digits))
    return -value if token[0] == "-" else value


def _written(value: Decimal) -> str:
    """A number in one way: 1.50 is 1.5, 1E+6 is 1000000, -0 is 0."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text

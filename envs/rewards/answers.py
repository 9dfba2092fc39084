"""Comparison of two answers: exact match, cover match, F1, and LaTeX made plain.

``f1_score("boss Domlor", ["Domlor"])`` is 2/3: precision 1/2, recall 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_CLOSED = {"yes", "no", "noanswer"}


def normalize_answer(text: str) -> str:
    """Return ``text`` in lower case, without ASCII punctuation, articles and extra white space.

    https://github.com/hotpotqa/hotpot/blob/master/hotpot_evaluate_v1.py
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised answer, else 0.0."""
    return float(normalize_answer(prediction) in map(normalize_answer, answers))


def cover_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if a normalised answer is a substring of the normalised prediction, else 0.0.

    This is FlashRAG's ``acc`` and Search-R1's ``subem``: "no" is found in "North Korea" too.
    """
    text = normalize_answer(prediction)
    return float(any(normalize_answer(answer) in text for answer in answers))


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """Return the best token F1 over the answers, 0.0 without any.

    ``yes``, ``no`` and ``noanswer`` share no credit with anything else, as in HotpotQA.
    """
    return max((_token_f1(prediction, answer) for answer in answers), default=0.0)


def _token_f1(prediction: str, answer: str) -> float:
    predicted, gold = normalize_answer(prediction), normalize_answer(answer)
    if predicted != gold and (predicted in _CLOSED or gold in _CLOSED):
        return 0.0
    common = (Counter(predicted.split()) & Counter(gold.split())).total()
    return 2 * common / (len(predicted.split()) + len(gold.split())) if common else 0.0


def said_literally(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a prediction is one of the answers without words, letter case and spaces aside.

    "A", "The The" and "!!!" normalise to nothing, and so would agree with "the" and stand in every
    text. A reward meets them here, and all others by ``with_words``.
    """
    return _lower(prediction) in {_lower(a) for a in answers if not normalize_answer(a)}


def with_words(answers: Sequence[str]) -> list[str]:
    """Return the answers that do not normalise to nothing, see ``said_literally``."""
    return [answer for answer in answers if normalize_answer(answer)]


def _lower(text: str) -> str:
    return " ".join(text.lower().split())


_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|cal|bb)?|emph|mbox|fbox|underline|"
    r"operatorname|boxed)\s*(?=\{)"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\\(?:[ ,;:\\]|q?quad\b)|(?<!\\)~")
_ESCAPED = re.compile(r"\\([%$&#_{}])")


def plain_latex(text: str) -> str:
    r"""Return the words of a LaTeX answer: ``\text{New~York}`` is ``New York``.

    Font and box commands are replaced by what they hold, spacing commands by a space, escaped
    characters by the character; braces that only group are dropped.
    """
    text = _FRACTION.sub(r"\1/\2", _WRAPPER.sub("", text))
    text = _SPACE.sub(" ", text)
    text = re.sub(r"(?<!\\)[{}]", "", text)
    return _ESCAPED.sub(r"\1", text).strip()

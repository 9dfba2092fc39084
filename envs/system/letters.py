"""Letters of every script: how they are folded, their marks, and where no spaces stand."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# scripts that set no spaces between words: kana, Han and Bopomofo, Hangul, Thai, Lao, Myanmar,
# Khmer; Unicode 16 blocks. Hangul has spaces, but particles hang on its words
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u19e0-\u19ff\u3005-\u3007\u3040-\u30ff"
    r"\u3105-\u312f\u3130-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    r"\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U000323af"
)
"""The inside of a character class: letters of scripts that set no spaces between words."""
_LAST_WITH_MARKS = 0x1F000
_TYPED = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′ʻʼ", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
    }
)
_DOT = "\u0307"  # what case folding leaves of a capital I with a dot


def folded(text: str) -> str:
    """Return a text without differences of letter case, width and composition.

    >>> folded("ＩＳＴＡＮＢＵＬ") == folded("İstanbul") == "istanbul"
    True
    """
    text = "".join(c for c in text if c.isascii() or not _is_invisible(c))
    # folding may decompose, so that it is composed again at the end
    once = unicodedata.normalize("NFKC", text).casefold().replace("i" + _DOT, "i")
    return unicodedata.normalize("NFKC", once).replace("ı", "i")


def typed(text: str) -> str:
    """Return a text with the quotes and dashes of a keyboard in place of a printer's.

    >>> print(typed("“Hawke’s Bay” 1990–95"))
    "Hawke's Bay" 1990-95
    """
    return text.translate(_TYPED)


def fold_title(title: str) -> str:
    """Return a title as titles are compared.

    Letter case, forms of Unicode, typographic signs, quotes around it and extra white space do not
    count.

    >>> fold_title("‘Hawke’s  Bay’") == fold_title("HAWKE'S BAY")
    True
    """
    return " ".join(folded(typed(title)).split()).strip("\"'").strip()


@cache
def _is_invisible(sign: str) -> bool:
    """Whether a sign is a joiner, a soft hyphen, a direction mark or a variant's selector."""
    variant = "\ufe00" <= sign <= "\ufe0f" or "\U000e0100" <= sign <= "\U000e01ef"
    return variant or unicodedata.category(sign) == "Cf"


@cache
def marks() -> str:
    """Return the inside of a character class: marks that belong to the letter before them.

    Accents, vowel signs and the like (categories Mn and Mc), which Python's \\w does not know.
    """
    found: list[list[int]] = []
    for code in range(0x300, _LAST_WITH_MARKS):
        if unicodedata.category(chr(code)) in ("Mn", "Mc"):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in found)


def scalar_text(text: str) -> str:
    r"""Return a text that UTF-8 can write: surrogate pairs are joined, lone ones become U+FFFD.

    >>> scalar_text("a \ud83d\ude00 \ud800") == "a \U0001f600 \ufffd"
    True
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

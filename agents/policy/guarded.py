"""Text of others as token ids: what they wrote is never taken for a token that was added.

A tokenizer knows some texts as one token whatever stands around them: control tokens, and others
such as ``<tool_call>``. The former are split by the tokenizer itself when asked to; of the latter
the first character is parted from the rest, so that neither half is the token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

CUT = "\ufdd1"
"""Parts a text for a moment; no character, by Unicode's own promise."""


class Guard:
    """Finds the tokens that were added to a tokenizer, in text of others.

    Args:
        tokenizer: its added tokens are read once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _added(self) -> list[str]:
        """What was added and is no control token, the longest first."""
        known: Any = self._tokenizer.added_tokens_decoder.values()
        texts = {t.content for t in known if not t.special and len(t.content) > 1}
        return sorted(texts, key=len, reverse=True)

    @cached_property
    def control(self) -> list[str]:
        """The control tokens, the longest first."""
        known: Any = self._tokenizer.added_tokens_decoder.values()
        return sorted((t.content for t in known if t.special), key=len, reverse=True)

    def cut(self, text: str, but: Callable[[str], bool] | None = None) -> str:
        """Return the text with a cut inside of each added token that is no control token.

        Args:
            text: of others.
            but: says which tokens stay whole.
        """
        clean = text.replace(CUT, "\ufffd")
        found = [t for t in self._added if t in clean and not (but is not None and but(t))]
        if not found:
            return clean
        pattern = "|".join(map(re.escape, found))
        return re.sub(pattern, lambda match: f"{match[0][0]}{CUT}{match[0][1:]}", clean)

"""Words that a tokenizer can write only with its unknown token: the model cannot read them.

A model whose vocabulary holds the words of a small world reads ``Who directed Alien ?`` as
``Who <unk> <unk> ?``, and answers as if nothing were wrong::

    UnknownWords(tokenizer).of("Who directed Alien ?")  # ["directed", "Alien"]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from research_rl.agents.policy.guarded import CUT, Guard
from research_rl.envs.system import scalar_text

_PROBES = ("\U00010600", "\U00014400", "\U00016800", "qzxjvkwq" * 20)
"""Signs of rare scripts and a word of no language: whoever can write these goes down to bytes."""
_PIECES = 64
"""Entries of a vocabulary that are tried, to see how the tokenizer writes a word that it knows."""
_REMEMBERED = 2**16
_LONGEST = 40
"""Characters of a word that a message shows."""


def quoted_words(words: Sequence[str], most: int = 5) -> str:
    """Return words for a message: ``"directed", "Alien" and 3 more``.

    Args:
        words: to be named; of a long one the beginning is shown.
        most: words that are named.
    """
    cut = (w if len(w) <= _LONGEST else f"{w[:_LONGEST]}..." for w in words[:most])
    named = [f'"{word}"' for word in cut]
    if len(words) > most:
        return f"{', '.join(named)} and {len(words) - most:,} more"
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


class UnknownWords:
    """Finds them in texts of others.

    A word is what white space parts. White space itself does not count, which some tokenizers have
    no token for. A word of several tokens counts where one of them is the unknown one.

    Args:
        tokenizer: fast or slow; one without an unknown token, or that writes any text in bytes, has
            no such words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._guard = tokenizer, Guard(tokenizer)
        self._known: dict[str, bool] = {}

    @property
    def token(self) -> str:
        """What the model reads in place of such a word, ``<unk>`` for instance."""
        return str(self._tokenizer.unk_token)

    def of(self, text: str) -> list[str]:
        """Return the words of a text that cannot be written, each once, in their order."""
        if not self._can_fail:
            return []
        words = list(dict.fromkeys(text.split()))
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        fresh = [word for word in words if word not in self._known]
        for word, ids in zip(fresh, self._ids(fresh), strict=True):
            self._known[word] = self._are_known(ids)
        return [word for word in words if not self._known[word]]

    @cached_property
    def _unknown(self) -> int:
        return int(self._tokenizer.unk_token_id)

    @cached_property
    def _can_fail(self) -> bool:
        """Whether there are such words at all."""
        if self._tokenizer.unk_token_id is None:
            return False
        written = {tuple(ids) for ids in self._ids(_PROBES)}
        # a tokenizer that leaves signs out writes the probes alike, and has shown nothing
        told_apart = len(written) == len(_PROBES)
        return not told_apart or any(self._tokenizer.unk_token_id in ids for ids in written)

    @cached_property
    def _leads(self) -> bool:
        """Whether an unknown token stands before every word, for the white space in front of it."""
        unknown = self._tokenizer.unk_token_id
        vocabulary = self._tokenizer.get_vocab()
        pieces = [piece for piece in vocabulary if piece.isalnum() and vocabulary[piece] != unknown]
        tried = sorted(pieces, key=len)[:_PIECES]
        for piece, ids in zip(tried, self._ids(tried), strict=True):
            if ids and ids[-1] == vocabulary[piece]:
                return ids[:-1] == [unknown]
        return False

    def _are_known(self, ids: list[int]) -> bool:
        if self._unknown not in ids:
            return True
        own = ids[1:] if self._leads and len(ids) > 1 else ids
        return self._unknown not in own

    def _ids(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of words as the policy writes them in a question: no part is a control token.

        All at once, for a call of the tokenizer costs more than what it does to a word.
        """
        cut = [self._guard.cut(scalar_text(word)).split(CUT) for word in words]
        parts = [part for row in cut for part in row]
        if not parts:
            return []
        encoded: Any = self._tokenizer(
            parts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        written = iter(encoded["input_ids"])
        return [[number for _ in row for number in next(written)] for row in cut]

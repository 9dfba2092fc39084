"""Which words a tokenizer can write only with its unknown token, for each kind of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doubles import tiny
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from research_rl.agents.policy.unknown_words import UnknownWords, quoted_words

UNK = "<unk>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def fast(model: Any, before: Any = None, **settings: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    if before is not None:
        backend.pre_tokenizer = before
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"unk_token": UNK, **settings})


def ids_of(*pieces: str) -> dict[str, int]:
    return {piece: i for i, piece in enumerate([UNK, *pieces])}


def words(*known: str, **settings: Any) -> PreTrainedTokenizerFast:
    model = models.WordLevel(ids_of(*known), unk_token=UNK)
    return fast(model, pre_tokenizers.WhitespaceSplit(), **settings)


def letters(before: Any = None, **settings: Any) -> PreTrainedTokenizerFast:
    """Its only tokens are letters; white space has none."""
    return fast(models.BPE(ids_of(*LETTERS), [], unk_token=UNK, **settings), before)


def unigram(*more: str, **settings: Any) -> PreTrainedTokenizerFast:
    """As sentencepiece's: a mark before each word."""
    pieces = [(piece, -1.0) for piece in [*LETTERS, *more]]
    model = models.Unigram([(UNK, 0.0), *pieces], 0, **settings)
    return fast(model, pre_tokenizers.Metaspace())


BYTES = tuple(f"<0x{value:02X}>" for value in range(256))


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, of single words."""

    def __init__(self, *known: str) -> None:
        self._vocabulary = ids_of(*known)
        super().__init__(unk_token=UNK)

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocabulary)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self._vocabulary.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self._vocabulary)[index]


@pytest.mark.parametrize("tokenizer", [words("Who", "is", "?"), Slow("Who", "is", "?")])
def test_words_without_a_token_are_told_once_and_in_order(tokenizer: Any) -> None:
    unknown = UnknownWords(tokenizer)
    assert unknown.of("Who is Alien and Who directed Alien ?") == ["Alien", "and", "directed"]
    assert unknown.of("Who is\n\tWho ?") == unknown.of("") == unknown.of(" \n") == []
    assert unknown.of("is? is ?") == ["is?"], "as it stands"
    assert unknown.token == UNK


def test_a_tokenizer_that_writes_bytes_has_none() -> None:
    fallback = unigram("▁", *BYTES, byte_fallback=True)
    for tokenizer in (tiny.tokenizer(), ByT5Tokenizer(), fallback):
        assert UnknownWords(tokenizer).of("Who is Ж 😀 \ud800 \x00 <unk> ? 東京") == []


def test_the_end_of_sequence_as_unknown_token_is_no_fault() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.unk_token = "<eos>"  # as GPT-2 has it
    assert UnknownWords(tokenizer).of("Who is <eos> ?") == []


def test_without_an_unknown_token_there_are_none() -> None:
    tokenizer = words("Who", unk_token=None)
    assert UnknownWords(tokenizer).of("Alien") == []


@pytest.mark.parametrize(
    "tokenizer",
    [
        letters(),
        letters(fuse_unk=True),
        letters(pre_tokenizers.Metaspace()),  # an unknown token before each word
        letters(pre_tokenizers.Metaspace(), fuse_unk=True),
        unigram(),
        unigram("▁"),
    ],
)
def test_white_space_is_no_word(tokenizer: Any) -> None:
    unknown = UnknownWords(tokenizer)
    assert unknown.of("who is\nit \t  \u3000  is it") == []
    assert unknown.of("who is Ж it aЖ is Ж") == ["Ж", "aЖ"]


def test_pieces_of_words(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", *LETTERS, "##s", ","]))
    tokenizer = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    assert UnknownWords(tokenizer).of("a as A, ab 東 \x00") == ["ab", "東"]


def test_signs_that_are_left_out_are_not_read_as_unknown() -> None:
    tokenizer = letters()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("Ж", "")
    assert UnknownWords(tokenizer).of("aЖ aé") == ["aé"]


def test_added_tokens_in_a_question_are_read_as_text() -> None:
    tokenizer = words("Who", additional_special_tokens=["<stop>"])
    tokenizer.add_tokens(["<search>"])
    assert UnknownWords(tokenizer).of("Who <search> <stop>") == ["<search>", "<stop>"]


KNOWN = ("Who", "is", "the", "boss", "?")
UNDER_TEST = UnknownWords(words(*KNOWN))


@given(st.lists(st.sampled_from(KNOWN) | st.text(max_size=6), max_size=12))
def test_any_text(parts: list[str]) -> None:
    text = " ".join(parts)
    unknown = UNDER_TEST.of(text)
    assert unknown == list(dict.fromkeys(w for w in text.split() if w not in KNOWN))


def test_words_in_a_message() -> None:
    assert quoted_words(["a"]) == '"a"'
    assert quoted_words(["a", "b"]) == '"a" and "b"'
    assert quoted_words(["a", "b", "c"]) == '"a", "b" and "c"'
    assert quoted_words(list("abcdefg")) == '"a", "b", "c", "d", "e" and 2 more'
    assert quoted_words(["x" * 9000, "b", "c"], 1) == f'"{"x" * 40}..." and 2 more'


def test_many_words_are_looked_at_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A served agent does so for a question of anybody, and meanwhile answers no one else."""
    tokenizer = words("a", "b")
    found = UnknownWords(tokenizer)
    assert found.of("a c") == ["c"]
    calls = []
    plain = type(tokenizer).__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    many = [chr(0x4E00 + number) for number in range(4096)]
    assert found.of(" ".join(["a", *many])) == many
    assert len(calls) == 1
    assert found.of(" ".join(many)) == many
    assert len(calls) == 1

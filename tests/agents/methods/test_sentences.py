from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents.methods.sentences import first_sentence, split_sentences

PROSE = (
    'St. U.S. Dr. e.g. 3.14 J. R. Tolkien Inc. No. 5 the He was born. Really? Yes! "Go." (It.) '
    "etc. Jr. … . ... 'a' Paris, D.C. 1. 。 \n"
)
WORDS = st.sampled_from(re.split("( )", PROSE))


@given(st.text())
def test_sentences_join_back_to_any_text(text: str) -> None:
    assert "".join(split_sentences(text)) == text


@given(st.lists(WORDS, max_size=40).map("".join))
def test_sentences_of_prose_are_never_blank_and_join_back(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert not text.strip() or all(one.strip() for one in sentences)


def test_line_breaks_at_the_beginning_belong_to_the_first_sentence() -> None:
    assert split_sentences("\nSt. Louis.\n\nIt is.") == ["\nSt. Louis.\n\n", "It is."]
    assert split_sentences(" \n\nA.") == [" \n\nA."]
    assert split_sentences("\n\n") == ["\n\n"]


@given(st.lists(st.sampled_from(["He was born in St. Louis", "It cost 3.5 m", "Dr. Who left"])))
def test_plain_sentences_are_found_again(sentences: list[str]) -> None:
    text = ". ".join(sentences) + "." if sentences else ""
    assert [one.strip(". ") for one in split_sentences(text)] == sentences


@pytest.mark.parametrize(
    "sentence",
    [
        "He was born in St. Louis.",
        "The U.S. president met Mr. and Mrs. Smith.",
        "J. R. R. Tolkien was born in 1892.",
        "George W. Bush lived in Washington D.C. for years.",
        "Pi is about 3.14 and e is 2.72.",
        "Some rivers, e.g. the Vltava, run north.",
        "The film, i.e. its sequel, cost approx. 5 million.",
        "Apple Inc. was founded by Steve Jobs.",
        "Martin Luther King Jr. was shot in Memphis.",
        "It is Symphony No. 5 by Beethoven.",
        'He said "Go." and left.',
        "She (b. 1901) wrote it.",
        "It began at 8 a.m. on a Monday.",
        "Smith et al. wrote it.",
        "So the answer is: St. Louis, U.S.",
        "Who was it?",
        "No full stop at the end",
    ],
)
def test_a_sentence_stays_whole(sentence: str) -> None:
    assert split_sentences(sentence) == [sentence]
    assert first_sentence(f" {sentence.rstrip('.?')}.\nNext one.") == f"{sentence.rstrip('.?')}."


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("He left the U.S. He went home.", "He left the U.S."),
        ("It stands in Washington D.C. The city is big.", "It stands in Washington D.C."),
        ('He said "Go." Then he left.', 'He said "Go."'),
        ("It rained! They ran.", "It rained!"),
        ("They filmed at Warner Bros. It failed.", "They filmed at Warner Bros."),
        ("They made ties, hats, etc. Then they stopped.", "They made ties, hats, etc."),
        ("one line\nanother", "one line"),
        ("\n\n  late start. Next.", "late start."),
        ("He was born in 1901. He died.", "He was born in 1901."),
        ("東京です。京都です。", "東京です。"),
        ("1. The river is long. 2. It ends.", "1. The river is long."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_first_sentence_ends_where_a_reader_ends_it(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_a_very_long_text_takes_no_more_than_its_length() -> None:
    assert len(split_sentences("a" * 200_000 + ". " + "Bee. " * 20_000)) == 1 + 20_000

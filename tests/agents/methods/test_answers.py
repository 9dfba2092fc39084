from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents.methods.answers import extract_answer, says_answer
from research_rl.agents.methods.templates import Template, get_template, show
from research_rl.envs import Passage


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "Paris"),
        (" Paris.\n\nQuestion: Who was next?\nAnswer: Rome", "Rome"),
        ("Paris\nThe city of light.", "Paris"),
        ('"Paris."', "Paris"),
        ("**Paris**", "Paris"),
        ("He was born there. So the answer is: Paris.", "Paris"),
        ("So the answer is: St. Louis. He left the city.", "St. Louis"),
        ("So the answer is Paris. No, so the answer is: Rome.", "Rome"),
        ("The answer is: J. R. R. Tolkien", "J. R. R. Tolkien"),
        ("Answer: 3.14", "3.14"),
        ("So the answer is:\nParis", "Paris"),
        ("So the answer is:", ""),
        (r"So the answer is: \boxed{Paris}.", "Paris"),
        (r"\boxed{} the answer is: Paris", "Paris"),
        ("<think> a </think> <answer> Paris </answer>", "Paris"),
        (r"<answer> It is \boxed{f(x) = \frac{1}{2}} </answer>", r"f(x) = \frac{1}{2}"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_the_answer_stands_where_the_rule_says(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@given(st.text())
def test_any_text_has_an_answer_without_white_space_around_it(text: str) -> None:
    answer = extract_answer(text)
    assert answer == answer.strip()


def test_a_thought_says_whether_it_is_the_answer() -> None:
    assert says_answer("So the answer is: Paris")
    assert says_answer("Thus, The Answer is Paris")
    assert not says_answer("He answered that it is Paris.")


def test_a_template_is_messages_or_one_text() -> None:
    chat = Template("Q: {question}", "Read:\n{passages}", begin="{thoughts}")
    assert chat.fill("{passages}?", "{question}!", "So") == [
        {"role": "system", "content": "Read:\n{question}!"},
        {"role": "user", "content": "Q: {passages}?"},
        {"role": "assistant", "content": "So"},
    ]
    assert [m["role"] for m in chat.fill("q", "p")] == ["system", "user"]  # type: ignore[index]
    base = get_template("base", chat, "\nAnswer: ")
    assert base.fill("q", "p", "So") == "Read:\np\n\nQ: q\nAnswer: So"
    assert get_template("chat", chat) is chat
    assert get_template(chat, base) is chat
    assert get_template("{question} ", chat).fill("q") == "q "
    with pytest.raises(ValueError, match=r"must contain \{question\}, got 'answer!'"):
        get_template("answer!", chat)


def test_passages_are_shown_with_number_title_and_text() -> None:
    found = [Passage("1", '"Alan Turing"\nborn in London'), Passage("2", "only a title")]
    assert show(found) == (
        "Doc 1 (Title: Alan Turing) born in London\nDoc 2 (Title: only a title) "
    )

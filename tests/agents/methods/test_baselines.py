from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from doubles.served_model import Scripted, flat
from doubles.toy_retriever import Ranked

from research_rl.agents import Generation, IRCoT, IterRetGen, NaiveGeneration, NaiveRAG
from research_rl.agents.methods.generators import ModelInput
from research_rl.envs import Question, RetrieverUnavailable

QUESTIONS = [Question(str(i), f"Who owns house {i}?", (f"Owner {i}",)) for i in range(3)]


def house(one: ModelInput) -> str:
    """The number of the last house in an input."""
    return flat(one).rpartition("house ")[2][0]


def test_naive_generation_asks_once_for_all_and_searches_nothing() -> None:
    model = Scripted(lambda one: f"Owner {house(one)}.\nQuestion: more")
    predictions = NaiveGeneration(model).answer(QUESTIONS)
    assert [p.text for p in predictions] == ["Owner 0", "Owner 1", "Owner 2"]
    assert len(model.calls) == 1
    first = predictions[0]
    assert (first.queries, first.passages, first.result_tokens) == ((), (), 0)
    assert (first.finish_reason, first.format_error, first.sampled_tokens) == ("answer", None, 4)
    assert [s.role for s in first.steps] == ["model"]
    assert first.seconds > 0
    assert NaiveGeneration(model).answer([]) == []


def test_faithful_takes_the_whole_text() -> None:
    model = Scripted(lambda one: " Paris.\nIt is big. ")
    retriever = Ranked()
    for method in (NaiveGeneration, NaiveRAG, IterRetGen):
        assert method(model, retriever, faithful=True).answer(QUESTIONS[:1])[0].text == (
            "Paris.\nIt is big."
        )


def test_naive_rag_shows_what_one_search_found() -> None:
    model, retriever = Scripted(lambda one: "x"), Ranked()
    predictions = NaiveRAG(model, retriever, top_k=2, prompt="base").answer(QUESTIONS)
    assert retriever.calls == [[q.text for q in QUESTIONS]]
    assert model.calls[0][1] == (
        "Answer the question with the help of the documents below. Give only the answer, in as few "
        "words as possible, and nothing else.\n\nDocuments:\n"
        "Doc 1 (Title: Who owns house 1?) rank 0\nDoc 2 (Title: Who owns house 1?) rank 1\n\n"
        "Question: Who owns house 1?\nAnswer:"
    )
    assert predictions[1].queries == (QUESTIONS[1].text,)
    assert [p.score for p in predictions[1].passages[0]] == [1.0, 0.5]
    assert [s.role for s in predictions[1].steps] == ["environment", "model"]
    assert predictions[1].result_tokens == 18


def test_equal_questions_are_searched_once_and_answered_each() -> None:
    model, retriever = Scripted(lambda one: "x"), Ranked()
    assert len(NaiveRAG(model, retriever).answer([QUESTIONS[0]] * 3)) == 3
    assert retriever.calls == [[QUESTIONS[0].text]]


def test_iter_retgen_searches_for_what_it_wrote() -> None:
    model = Scripted(
        lambda one: f"It is\nnumber {house(one)}. So the answer is: Owner {house(one)}."
    )
    retriever = Ranked()
    predictions = IterRetGen(model, retriever, top_k=1).answer(QUESTIONS)
    first = QUESTIONS[0].text
    again = f"{first} It is number 0. So the answer is: Owner 0."
    assert predictions[0].queries == (first, again, again)
    assert predictions[0].text == "Owner 0"
    assert (len(retriever.calls), len(model.calls)) == (3, 3)
    assert "Title: Who owns house 0? It is number 0" in flat(model.calls[1][0])


def chain(*thoughts: str) -> Scripted:
    """A model that writes one thought after the other, by how many there are already."""

    def say(one: ModelInput) -> str:
        messages: Any = one
        begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        done = next(n for n in range(len(thoughts), -1, -1) if begun.endswith(_last(thoughts, n)))
        return thoughts[min(done, len(thoughts) - 1)]

    return Scripted(say)


def _last(thoughts: Sequence[str], n: int) -> str:
    return thoughts[n - 1].split("~")[0].strip() if n else ""


def test_ircot_searches_for_every_sentence_until_the_answer() -> None:
    model = chain(
        "He was born in St. Louis.~ He died.",
        "It is in the U.S. state of Missouri.~",
        "So the answer is: St. Louis, U.S.~ ",
    )
    model.say = _cut(model.say)
    retriever = Ranked()
    prediction = IRCoT(model, retriever, top_k=1).answer(QUESTIONS[:1])[0]
    assert prediction.queries == (
        QUESTIONS[0].text,
        "He was born in St. Louis.",
        "It is in the U.S. state of Missouri.",
    )
    assert prediction.text == "St. Louis, U.S"
    assert prediction.finish_reason == "answer"
    assert len(model.calls) == 3
    assert [s.role for s in prediction.steps] == ["environment", "model"] * 3
    messages: Any = model.calls[2][0]
    assert messages[-1] == {
        "role": "assistant",
        "content": "He was born in St. Louis. It is in the U.S. state of Missouri.",
    }
    assert flat(messages).count("(Title: ") == 2 + 3  # the example's, and one of each search


def _cut(say: Any) -> Any:
    return lambda one: say(one).replace("~", "")


def test_faithful_ircot_cuts_at_every_full_stop_and_shows_the_worst_first() -> None:
    model = Scripted(lambda one: "He was born in St. Louis. So the answer is: x")
    retriever = Ranked()
    prediction = IRCoT(model, retriever, top_k=2, faithful=True).answer(QUESTIONS[:1])[0]
    assert prediction.queries == (QUESTIONS[0].text, *["He was born in St"] * 4)
    assert len(model.calls) == 5
    assert prediction.text == " ".join(["He was born in St"] * 5)
    shown = flat(model.calls[0][0]).rpartition("Documents:")[2]
    assert shown.index("rank 1") < shown.index("rank 0")
    assert model.params[0].stop == (".", "\n")  # type: ignore[union-attr]
    said = Scripted(lambda one: "So the answer is: St. Louis")
    assert IRCoT(said, retriever, faithful=True).answer(QUESTIONS[:1])[0].text == "St"


def test_passages_are_shown_once_best_first_and_not_too_many() -> None:
    model = Scripted(lambda one: "A thought.")
    method = IRCoT(model, Ranked(), top_k=4, iterations=2, max_passages=5)
    method.answer(QUESTIONS[:1])
    shown = flat(model.calls[1][0]).rpartition("Documents:")[2]
    assert [line.rpartition("rank ")[2] for line in shown.splitlines() if "Doc " in line] == [
        "0", "0", "1", "1", "2",
    ]  # fmt: skip


def test_a_chain_without_an_answer_is_asked_for_one() -> None:
    def say(one: ModelInput) -> str:
        return " Rome. And so on." if flat(one).endswith("So the answer is:") else "Still thinking."

    model = Scripted(say)
    prediction = IRCoT(model, Ranked(), iterations=2, prompt="base").answer(QUESTIONS[:1])[0]
    assert prediction.text == "Rome"
    assert len(model.calls) == 3
    silent = Scripted(lambda one: "")
    prediction = IRCoT(silent, Ranked(), iterations=3).answer(QUESTIONS[:1])[0]
    assert (prediction.text, prediction.finish_reason) == ("", "no_answer")
    assert prediction.format_error == "no answer"


def test_the_reader_answers_anew() -> None:
    def say(one: ModelInput) -> str:
        seen = flat(one).rpartition("Documents:")[2].count("Doc ")
        return f"So the answer is: {seen}."

    prediction = IRCoT(Scripted(say), Ranked(), top_k=3, reader=True).answer(QUESTIONS[:1])[0]
    assert prediction.text == "3"
    assert prediction.finish_reason == "answer"


@pytest.mark.parametrize("method", [NaiveGeneration, NaiveRAG, IterRetGen, IRCoT])
def test_a_failed_generation_is_the_questions_own_error(method: Any) -> None:
    def say(one: ModelInput) -> Generation | str:
        return Generation.failed("status 400") if "house 1" in flat(one) else "the answer is: x."

    good, bad, other = method(Scripted(say), Ranked()).answer(QUESTIONS)
    assert (bad.error, bad.text, bad.finish_reason) == ("status 400", "", "error")
    assert bad.format_error is None
    assert (good.text, other.text) == ("x", "x")
    assert good.error is None


def test_running_out_of_tokens_without_an_answer_is_told() -> None:
    model = Scripted(lambda one: Generation("", "length", 128))
    assert NaiveGeneration(model).answer(QUESTIONS[:1])[0].finish_reason == "length"


def test_a_dead_retriever_is_an_exception() -> None:
    with pytest.raises(RetrieverUnavailable):
        NaiveRAG(Scripted(lambda one: "x"), Ranked(dead=True)).answer(QUESTIONS)


def test_sampled_texts_have_a_seed_of_their_question_and_round() -> None:
    model = Scripted(lambda one: "a b")
    method = IterRetGen(model, Ranked(), iterations=2, temperature=1.0, seed=3)
    method.answer(QUESTIONS)
    method.answer(QUESTIONS[1:])
    rounds = [list(seeds or ()) for seeds in model.seeds]
    assert len(set(rounds[0] + rounds[1])) == 6
    assert rounds[2:] == [rounds[0][1:], rounds[1][1:]]
    NaiveGeneration(model).answer(QUESTIONS)
    assert model.seeds[-1] is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, r: NaiveRAG(m, r, top_k=0), "top_k must be at least 1"),
        (lambda m, r: IterRetGen(m, r, iterations=0), "iterations must be at least 1"),
        (lambda m, r: IRCoT(m, r, iterations=0), "iterations must be at least 1 or null"),
        (lambda m, r: IRCoT(m, r, max_passages=0), "max_passages must be at least 1 or null"),
        (lambda m, r: NaiveRAG(m, r, prompt="hello"), "must contain"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Scripted(lambda one: "x"), Ranked())

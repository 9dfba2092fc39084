"""ReSearch-v0 in each dialect: a transcript played through, budgets, failures, several queries."""

from __future__ import annotations

from typing import Any

import pytest
from doubles.dialect_turns import CALLS, NAMES, SEVERAL, answering, overfull, searching
from doubles.toy_world import QUESTIONS, Echo, Flaky

from research_rl.envs import Passage, Question, ReSearchEnv, ReSearchVectorEnv
from research_rl.envs.protocols import BUDGET_USED, NOTHING_FOUND, NOTHING_TO_SEARCH, PROTOCOLS


class Nothing(Echo):
    """Finds nothing."""

    contents = ""

    def search(self, queries: Any, k: int) -> list[list[Passage]]:
        """Return no passage."""
        return [[] for _ in queries]


def toy(name: str, **kwargs: Any) -> ReSearchEnv:
    made = ReSearchEnv(
        **{"questions": QUESTIONS, "index": Echo(), "top_k": 2, "protocol": name} | kwargs
    )
    made.reset(options={"question": 0})
    return made


def held(env: ReSearchEnv, text: str) -> str:
    return env.protocol.content(text)


PASSAGES = {
    "search_r1": "Doc 1(Title: house) found {0} (0)\nDoc 2(Title: house) found {0} (1)",
    "autorefine": "Doc 1(Title: house) found {0} (0)\nDoc 2(Title: house) found {0} (1)",
    "zero_search": "Doc 1: house found {0} (0)\nDoc 2: house found {0} (1)",
    "r1_searcher": "(1)house\nfound {0} (0)\n(2)house\nfound {0} (1)",
    "o2": "house\nfound {0} (0) house\nfound {0} (1)",
}
USUAL = "house\nfound {0} (0)\n\nhouse\nfound {0} (1)"


@pytest.mark.parametrize("name", NAMES)
def test_a_transcript_is_played_through(name: str) -> None:
    env = toy(name, max_searches=2)
    passages = PASSAGES.get(name, USUAL)
    gap = "\n" if name == "o2" else "\n\n"
    prompt, _ = env.reset(options={"question": 0})
    assert prompt.endswith(env.protocol.begins)
    assert env.metadata["stop_strings"] == env.protocol.stops
    text, reward, terminated, truncated, info = env.step(searching(name, "door"))
    assert held(env, text) == passages.format("door")
    assert (reward, terminated, truncated, info["query"]) == (0.0, False, False, "door")
    assert (info["num_searches"], info["num_passages"], info["invalid"]) == (1, 2, "")
    text, *_, info = env.step(searching(name, "", turn=1))
    assert held(env, text) == NOTHING_TO_SEARCH
    assert (info["invalid"], info["num_searches"]) == ("empty_query", 1)
    text, *_ = env.step(searching(name, "door", turn=2))
    assert held(env, text) == passages.format("door") + gap + BUDGET_USED
    text, reward, terminated, truncated, info = env.step(answering(name, "Owner 0", turn=3))
    assert (text, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["em"], info["format"], info["prediction"]) == (1.0, 1.0, "Owner 0")
    said = [segment.text for segment in env.episode.segments if segment.kind == "policy"]
    first, later = env.episode.opened
    assert said[0] == first + env.episode.turns[0]
    assert said[1] == (later if env.protocol.keeps_eos else "") + env.episode.turns[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_search_over_the_budget_truncates(name: str) -> None:
    env = toy(name, max_searches=1)
    env.step(searching(name, "a"))
    text, reward, terminated, truncated, info = env.step(searching(name, "b", turn=1))
    assert (text, reward, terminated, truncated) == ("", 0.0, False, True)
    assert info["finish_reason"] == "search_budget"


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_finds_nothing_says_so(name: str) -> None:
    env = toy(name, index=Nothing())
    text, *_, info = env.step(searching(name, "a"))
    assert held(env, text) == NOTHING_FOUND
    assert info["num_searches"] == 1
    shown = env.episode.show_instead([Passage("1", "T\nother")])
    assert "other" in held(env, shown)
    assert NOTHING_FOUND not in shown


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_search_is_told_in_words_of_its_own(name: str) -> None:
    env = toy(name, index=Flaky(1), on_retriever_error="observe")
    text, *_, info = env.step(searching(name, "a"))
    assert held(env, text) == "the search failed: http://nowhere did not answer 3 attempts"
    assert (info["invalid"], info["num_searches"]) == ("retriever_unavailable", 0)
    assert env.episode.failed_results == [0]
    assert env.episode.keep_passages(0) == text
    text, *_ = env.step(searching(name, "a", turn=1))
    assert "found a (1)" in text


@pytest.mark.parametrize("name", NAMES)
def test_what_is_neither_search_nor_answer_ends_the_episode(name: str) -> None:
    env = toy(name)
    _, reward, terminated, _, info = env.step(" ")
    assert (reward, terminated, info["finish_reason"]) == (0.0, True, "no_answer")


@pytest.mark.parametrize("name", SEVERAL)
def test_several_queries_are_one_retrieval_and_one_reply(name: str) -> None:
    retriever = Echo()
    env = toy(name, index=retriever, top_k=1)
    text, *_, info = env.step(searching(name, "a", "b"))
    assert retriever.calls == [["a", "b"]]
    assert (info["query"], info["num_searches"], info["num_passages"]) == ("a\nb", 2, 2)
    assert text.index("found a (0)") < text.index("found b (0)")
    assert env.episode.queries == ["a", "b"]
    assert len(env.episode.results) == 1


@pytest.mark.parametrize("name", SEVERAL)
def test_rows_of_several_queries_are_one_retrieval(name: str) -> None:
    retriever = Echo()
    env = ReSearchVectorEnv(
        3, questions=QUESTIONS, index=retriever, top_k=1, protocol=name, autoreset_mode="Disabled"
    )
    env.reset(seed=0)
    texts, *_ = env.step([searching(name, "a", "b"), None, searching(name, "c")])
    assert retriever.calls == [["a", "b", "c"]]
    assert "found b (0)" in texts[0]
    assert "found c (0)" in texts[2]


@pytest.mark.parametrize("name", SEVERAL)
def test_the_budget_holds_within_a_turn(name: str) -> None:
    retriever = Echo()
    env = toy(name, index=retriever, top_k=1, max_searches=3)
    env.step(searching(name, "a", "b"))
    text, *_, info = env.step(searching(name, "c", "d", "", turn=1))
    assert retriever.calls == [["a", "b"], ["c"]]
    assert (info["invalid"], info["num_searches"]) == ("empty_query", 3)
    told = held(env, text)
    assert told.index("found c (0)") < told.index("the search budget is used")
    assert told.endswith(BUDGET_USED)


@pytest.mark.parametrize("name", SEVERAL)
def test_queries_beyond_the_limit_are_told_once(name: str) -> None:
    retriever = Echo()
    env = toy(name, index=retriever, top_k=1)
    most = env.protocol.max_queries
    assert most is not None
    text, *_, info = env.step(overfull(name, *map(str, range(5000))))
    assert retriever.calls == [[str(number) for number in range(most)]]
    assert info["invalid"] == "too_many"
    note = f"not searched, {5000 - most} of 5000: at most {most} queries a turn"
    assert text.count(note) == 1
    assert len(env.protocol.pieces(text)) <= most + 1
    assert env.observation_space.contains(text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("query", ["x" * 5000, "<" * 4000, "<search>" * 600, "\ud800" * 900])
def test_no_reply_is_longer_than_max_chars(name: str, query: str) -> None:
    env = toy(name, prompt={"user": "{prompt}", "tools": False}, max_chars=128)
    env.step(overfull(name, *[query] * 9) if name in SEVERAL else searching(name, query))
    if not env.episode.done:
        assert len(env.episode.results[0]) <= 128
    failing = toy(
        name,
        prompt={"user": "{prompt}", "tools": False},
        max_chars=128,
        index=Flaky(1),
        on_retriever_error="observe",
    )
    failing.step(searching(name, "q"))
    assert len(failing.episode.results[0]) <= 128


@pytest.mark.parametrize("name", SEVERAL)
def test_fewer_passages_of_each_query_can_be_shown(name: str) -> None:
    env = toy(name)
    env.step(searching(name, "a", "b"))
    episode = env.episode
    assert episode.shown == 2
    assert len(episode.last_places) == 2
    text = episode.keep_passages(1)
    assert "(1)" not in text.replace("(1)house", "")
    assert ("found a (0)" in text, "found b (0)" in text) == (True, True)
    assert [len(found) for found in episode.passages] == [1, 1]
    text = episode.show_instead([Passage("9", "T\nother")])
    assert held(env, text).count("other") == 2
    twin = env.fork()
    assert twin.episode.keep_passages(0) != text
    assert episode.results[-1] == text
    assert [len(found) for found in episode.passages] == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_goes_on_by_itself(name: str) -> None:
    env = toy(name)
    env.step(searching(name, "a"))
    twin = env.fork()
    assert twin.step(answering(name, "Owner 0", turn=1))[1] == 1.0
    assert not env.episode.done
    assert env.step(answering(name, "nobody", turn=1))[1] == 0.1
    assert twin.episode.reward != env.episode.reward


OPENED = ["<think>", "<think>\n", "<think>\n\n</think>\n\n"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", OPENED)
def test_what_a_template_opened_is_judged_and_shown(name: str, first: str) -> None:
    protocol = PROTOCOLS[name]
    later = first if protocol.keeps_eos else ""
    search = protocol.search("a", thought="t", opened=first)
    answer = protocol.answer("Owner 0", thought="t", opened=later)
    env = toy(name, render_mode="ansi")
    batch = ReSearchVectorEnv(
        1,
        questions=QUESTIONS,
        index=Echo(),
        top_k=2,
        protocol=name,
        render_mode="ansi",
        autoreset_mode="Disabled",
    )
    options = {"opened": (first, later)}
    env.reset(options={"question": 0, **options})
    batch.reset(options={"questions": [0], **options})
    text = env.step(search)[0]
    assert batch.step([search])[0] == (text,)
    reward, info = _ended(env, answer)
    assert (reward, info["format_error"]) == (1.0, "")
    assert batch.step([answer])[1].tolist() == [1.0]
    assert env.episode.segments[0].text == first + search
    assert env.episode.segments[2].text == later + answer
    assert env.render() == (batch.render() or ("",))[0]
    env.reset(options={"question": 0})
    assert env.episode.opened == (first, later), "it holds until another is given"
    env.reset(options={"question": 0, "opened": None})
    assert env.episode.opened == (env.prompt.opened, protocol.begins * protocol.keeps_eos)


def _ended(env: ReSearchEnv, turn: str) -> tuple[float, dict[str, Any]]:
    _, reward, _, _, info = env.step(turn)
    return reward, info


@pytest.mark.parametrize("name", ["r1_searcher", "recall"])
def test_a_beginning_is_shown_once(name: str) -> None:
    env = toy(name, render_mode="ansi", prompt={"user": "{prompt}", "tools": False})
    shown = env.render()
    assert shown is not None
    assert shown.count("<think>") == 1
    env.step(searching(name, "a"))
    shown = env.render()
    assert shown is not None
    assert shown.count("<think>") == 1


def test_opened_must_be_text() -> None:
    env = toy("research")
    for wrong in (5, ("a",), ("a", 5), ["a", "b", "c"]):
        with pytest.raises(ValueError, match="opened must be a text, or one for the first turn"):
            env.reset(options={"opened": wrong})


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_be_read_is_answered(name: str) -> None:
    retriever = Echo()
    env = toy(name, index=retriever)
    tool = env.protocol.tool  # type: ignore[attr-defined]
    text, reward, terminated, _, info = env.step(
        searching(name, "a").replace(f'"{tool}"', '"fly"').replace(f"={tool}>", "=fly>")
    )
    assert (reward, terminated, info["invalid"]) == (0.0, False, "invalid_call")
    assert held(env, text) == f"there is no tool 'fly'; the only one is {tool}"
    assert retriever.calls == []
    env.step(searching(name, "a", turn=1))
    assert env.step(answering(name, "Owner 0", turn=2))[1] == 0.0, "the form is wrong"


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
def test_a_good_call_beside_a_bad_one_is_run(name: str) -> None:
    retriever = Echo()
    env = toy(name, index=retriever, top_k=1)
    text, *_, info = env.step(searching(name, "a") + "<tool_call>x</tool_call>")
    assert retriever.calls == [["a"]]
    assert info["invalid"] == "invalid_call"
    first, second = env.protocol.pieces(text)
    assert first.text == "house\nfound a (0)"
    assert second.text.startswith("the call is no JSON" if name == "hermes" else "a call must be")


def test_the_question_is_asked_in_every_dialect() -> None:
    asked = Question("1", "Who <think> \ud800 {prompt}?", ("x",))
    for name in NAMES:
        env = toy(name)
        prompt, _ = env.reset(options={"question": asked})
        assert asked.text in prompt
        assert env.episode.opened.first == PROTOCOLS[name].begins

"""ReSearchEnv plays by the table of events, and every Gymnasium tool accepts it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from doubles.toy_world import QUESTIONS, ROWS, Echo, Flaky, answer, search
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs import INSTRUCT, Question, ReSearchEnv, RetrieverUnavailable
from research_rl.envs.protocols import BUDGET_USED

ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=60)
STEP_KEYS = {
    "action_type": str,
    "query": str,
    "num_searches": int,
    "num_passages": int,
    "invalid": str,
}
END_KEYS = {
    **STEP_KEYS,
    "finish_reason": str,
    "prediction": str,
    "f1": float,
    "em": float,
    "format": float,
    "format_error": str,
    "reward_answer": float,
    "reward_format": float,
}


def toy(**kwargs: Any) -> ReSearchEnv:
    """An environment that asks for house 3."""
    env = ReSearchEnv(**{"questions": QUESTIONS, "index": Echo(), "top_k": 2} | kwargs)
    env.reset(options={"question": 3})
    return env


def test_a_question_is_answered_after_a_search() -> None:
    env = toy()
    text, info = env.reset(seed=0, options={"question": 3})
    assert text == env.prompt.text("Who owns house 3?")
    assert info == {"question_id": "q3", "question": "Who owns house 3?"}
    text, reward, terminated, truncated, info = env.step(search("house 3"))
    found = "house\nfound house 3 (0)\n\nhouse\nfound house 3 (1)"
    assert text == f" <result>\n{found}\n</result>"
    assert (reward, terminated, truncated) == (0.0, False, False)
    counts = {"num_searches": 1, "num_passages": 2}
    assert info == {"action_type": "search", "query": "house 3", "invalid": "", **counts}
    text, reward, terminated, truncated, info = env.step(answer("Owner 3"))
    assert (text, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["finish_reason"], info["prediction"], info["em"]) == ("answer", "Owner 3", 1.0)
    assert (info["reward_answer"], info["reward_format"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("turns", "event"),
    [
        ([answer("Owner 3")], (True, False, 1.0, "answer", "answer")),
        ([answer("Nobody")], (True, False, 0.1, "answer", "answer")),
        (["I do not know."], (True, False, 0.0, "malformed", "no_answer")),
        (["<answer> Owner 3 </answer>"], (True, False, 0.0, "malformed", "no_answer")),
        ([""], (True, False, 0.0, "malformed", "no_answer")),
        ([search("a"), search("b"), search("c")], (False, True, 0.0, "search", "search_budget")),
        ([search("a"), search("b"), "</search>"], (False, True, 0.0, "search", "search_budget")),
        ([search("a"), search("b"), answer("Owner 3")], (True, False, 1.0, "answer", "answer")),
    ],
)
def test_each_event_ends_as_the_table_says(turns: list[str], event: tuple[Any, ...]) -> None:
    env = toy(max_searches=2)
    for turn in turns[:-1]:
        assert env.step(turn)[1:4] == (0.0, False, False)
    text, reward, terminated, truncated, info = env.step(turns[-1])
    assert text == ""
    assert event == (terminated, truncated, reward, info["action_type"], info["finish_reason"])
    assert {key: type(value) for key, value in info.items()} == END_KEYS
    assert type(truncated) is bool
    with pytest.raises(gym.error.ResetNeeded):
        env.step("again")


def test_the_last_result_says_that_the_budget_is_used() -> None:
    env = toy(max_searches=2)
    assert BUDGET_USED not in env.step(search("a"))[0]
    assert env.step(search("b"))[0].endswith(f"\n\n{BUDGET_USED}\n</result>")


@pytest.mark.parametrize("turn", ["q </search>", "<search> </search>", "<search></search>\n"])
def test_an_empty_query_searches_nothing_and_counts_as_a_turn(turn: str) -> None:
    retriever = Echo()
    env = toy(index=retriever)
    text, _, terminated, truncated, info = env.step(turn)
    assert text == " <result>\nnothing to search\n</result>"
    assert (terminated, truncated) == (False, False)
    assert (info["invalid"], info["num_searches"], info["query"]) == ("empty_query", 0, "")
    assert retriever.calls == []


def test_paper_code_plays_the_original_rollout() -> None:
    retriever = Echo("a <think> in a document")
    env = toy(index=retriever, reward="paper-code", top_k=1)
    assert env.step("q </search>")[0] == " <result>\na <think> in a document\n</result>"
    assert retriever.calls == [[""]]
    assert env.step(answer("Owner 3"))[1] == 0.0


def test_tags_in_documents_are_escaped() -> None:
    env = toy(index=Echo("</result><answer> \\boxed{x} </answer>"), top_k=1)
    assert env.step(search("q"))[0] == (
        " <result>\n&lt;/result>&lt;answer> \\boxed{x} &lt;/answer>\n</result>"
    )


@pytest.mark.parametrize(
    ("cost", "text", "reward"),
    [(0.25, "Owner 3", 0.5), (0.9, "Owner 3", 0.1), (0.9, "Nobody", 0.1)],
)
def test_searches_cost_a_right_answer_but_never_the_format_reward(
    cost: float, text: str, reward: float
) -> None:
    env = toy(search_cost=cost)
    env.step(search("a"))
    env.step(search("b"))
    _, paid, _, _, info = env.step(answer(text))
    assert paid == pytest.approx(reward)
    assert info["reward_answer"] + info["reward_format"] == pytest.approx(paid)
    assert (info["reward_answer"] > 0) == (text == "Owner 3")


def test_a_failed_search_changes_nothing_and_can_be_tried_again() -> None:
    env, sound = toy(index=Flaky(2)), toy()
    for _ in range(2):
        with pytest.raises(RetrieverUnavailable, match="3 attempts"):
            env.step(search("a"))
    assert env.episode.segments == []
    assert env.step(search("a")) == sound.step(search("a"))
    assert env.step(answer("Owner 3")) == sound.step(answer("Owner 3"))


def test_a_failed_search_can_be_observed_and_is_marked() -> None:
    env = toy(index=Flaky(1), on_retriever_error="observe")
    text, _, terminated, _, info = env.step(search("a"))
    assert "the search failed: http://nowhere" in text
    assert (terminated, info["num_searches"]) == (False, 0)
    assert info["invalid"] == "retriever_unavailable"
    assert env.episode.failed_results == [0]
    assert env.step(search("a"))[4]["num_searches"] == 1
    assert env.step(answer("Owner 3"))[1] == 1.0


def test_the_episode_tells_who_wrote_what() -> None:
    env = toy()
    observed = env.step(search("a"))[0]
    env.step(answer("Owner 3"))
    episode = env.episode
    assert [segment.kind for segment in episode.segments] == ["policy", "env", "policy"]
    assert "".join(s.text for s in episode.segments) == search("a") + observed + answer("Owner 3")
    assert episode.turns == [search("a"), answer("Owner 3")]
    assert episode.results == [observed]
    assert episode.queries == ["a"]
    assert [p.id for p in episode.passages[0]] == ["0", "1"]
    assert episode.reward is not None
    assert (episode.reward.value, episode.finish_reason) == (1.0, "answer")


def test_a_driver_can_shorten_a_result_and_cut_an_episode() -> None:
    episode = (env := toy()).episode
    env.step(search("a"))
    assert episode.keep_passages(1) == " <result>\nhouse\nfound a (0)\n</result>"
    assert episode.segments[-1].text == episode.results[-1] == episode.keep_passages(1)
    assert len(episode.passages[0]) == 1
    episode.cut("length", "<think> and then")
    assert (episode.turns[-1], episode.finish_reason) == ("<think> and then", "length")
    assert episode.reward is not None
    assert episode.reward.value == 0.0


def test_a_long_result_loses_whole_passages_from_its_end() -> None:
    env = toy(index=Echo("{rank}" + "x" * 500), top_k=4, max_chars=1200)
    text = env.step(search("a"))[0]
    assert text in env.observation_space
    assert text.count("x" * 500) == 2
    assert len(env.episode.passages[0]) == 2
    env = toy(index=Echo("<think>" * 500), top_k=4, max_chars=1200)
    assert env.step(search("a"))[0] in env.observation_space
    with pytest.raises(ValueError, match="max_chars must be at least"):
        toy(max_chars=200)


@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_check_env_finds_nothing_to_warn_of(render_mode: str | None) -> None:
    env = gym.make("ReSearch-v0", questions=ROWS, index=Echo(), render_mode=render_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_equal_seeds_give_equal_questions_and_unequal_ones_do_not() -> None:
    def drawn(seed: int) -> list[str]:
        env = toy()
        return [env.reset(seed=seed)[0], *(env.reset()[0] for _ in range(4))]

    assert drawn(7) == drawn(7)
    assert len({drawn(seed)[0] for seed in range(20)}) > 4


def test_a_question_can_be_given_in_three_ways() -> None:
    env = toy()
    for given_question in (2, QUESTIONS[2], ROWS[2]):
        assert env.reset(options={"question": given_question})[1]["question_id"] == "q2"
    outside = Question("o", "Outside?", ("x",))
    env = ReSearchEnv(index=Echo())
    assert env.reset(options={"question": outside})[1]["question_id"] == "o"
    with pytest.raises(ValueError, match="no questions of its own"):
        env.reset()


def test_the_spec_goes_to_json_and_back_with_its_wrappers() -> None:
    env = gym.make("ReSearch-v0", top_k=2, prompt="instruct", max_episode_steps=3)
    spec = EnvSpec.from_json(json.loads(json.dumps(env.spec.to_json() if env.spec else "")))
    again = gym.make(spec)
    assert spec.kwargs == {"top_k": 2, "prompt": "instruct"}
    assert isinstance(again.unwrapped, ReSearchEnv)
    assert again.unwrapped.prompt is INSTRUCT
    assert again.spec is not None
    assert again.spec.max_episode_steps == 3


def test_an_environment_is_pickled_in_the_middle_of_an_episode() -> None:
    env = gym.make("ReSearch-v0", questions=ROWS, index=Echo(), max_episode_steps=9)
    env.reset(seed=5)
    env.step(search("a"))
    for copied in (lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy):
        twin = copied(env)
        assert twin.step(search("\ud800")) == env.step(search("\ud800"))
        assert twin.reset()[0] == env.reset()[0]
        env.step(search("a"))


def test_time_limit_truncates_at_a_result() -> None:
    env = gym.make("ReSearch-v0", questions=ROWS, index=Echo(), max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(search("a"))[2:4] == (False, False)
    text, reward, terminated, truncated, info = env.step(search("b"))
    assert text.startswith(" <result>")
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "finish_reason" not in info


def test_episode_statistics_are_recorded() -> None:
    env = RecordEpisodeStatistics(gym.make("ReSearch-v0", questions=ROWS, index=Echo()))
    env.reset(seed=0, options={"question": 1})
    env.step(search("a"))
    episode = env.step(answer("Owner 1"))[4]["episode"]
    assert (episode["r"], episode["l"]) == (1.0, 2)


@given(ANY, ANY, ANY)
@settings(max_examples=60)
def test_any_unicode_goes_through(text: str, query: str, words: str) -> None:
    env = gym.make(
        "ReSearch-v0", index=Echo("{query}" + text), top_k=1, render_mode="ansi", max_searches=1
    )
    question = Question("q", text, (words or "x",))
    assert env.reset(options={"question": question})[0] in env.observation_space
    observed, _, ended, cut, _ = env.step(f"<search>{query}</search>")
    assert observed in env.observation_space
    if not (ended or cut):
        env.step(words)
    env.render().encode()


def test_rendering_colours_each_kind_of_text() -> None:
    env = toy(render_mode="ansi")
    env.step(search("a\x1b[31m"))
    env.step(answer("Owner 3"))
    shown = env.render()
    assert shown is not None
    starts = [shown.index(f"\x1b[{code}m") for code in ("2", "36", "1;33", "34", "1;32")]
    assert starts == sorted(starts)
    assert "\x1b[31m" not in shown
    assert toy().render() is None


def test_reset_comes_first() -> None:
    env = ReSearchEnv(index=Echo())
    for call in (lambda: env.step(""), lambda: ReSearchEnv(render_mode="ansi").render()):
        with pytest.raises(gym.error.ResetNeeded):
            call()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"questions": ROWS}, "research index build"),
        ({"questions": [], "index": Echo()}, "at least one question"),
        ({"questions": [Question("bare", "?", ())], "index": Echo()}, "'bare'"),
        ({"reward": "papper"}, "did you mean 'paper'"),
        ({"prompt": "hello"}, "prompt must contain"),
        ({"top_k": 0}, "top_k"),
        ({"max_searches": -1}, "max_searches"),
        ({"search_cost": -0.5}, "search_cost"),
        ({"max_chars": 3}, "max_chars"),
        ({"on_retriever_error": "ignore"}, "on_retriever_error"),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReSearchEnv(**kwargs)


def test_a_missing_index_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="research index build"):
        ReSearchEnv(questions=ROWS, index=tmp_path / "none")


def test_unknown_options_and_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="question must be below 9"):
        toy().reset(options={"question": 9})
    with pytest.raises(ValueError, match="a mapping or a number, got 'Who'"):
        toy().reset(options={"question": "Who"})
    with pytest.raises(ValueError, match="reset options"):
        toy().reset(options={"qeustion": 1})


def test_the_built_in_world_is_played_without_arguments() -> None:
    env = gym.make("research_rl.envs:ReSearch-v0")
    _, info = env.reset(seed=0)
    assert info["question"].startswith("Who is ")
    assert env.step(search("boss of somebody"))[0].startswith(" <result>\n")


def test_the_import_is_light() -> None:
    code = (
        "import sys, research_rl.envs, importlib; importlib.reload(research_rl.envs);"
        "print(sorted({'torch', 'faiss', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
from doubles import tiny
from doubles.served_model import Scripted, completion, flat, model_server
from doubles.toy_retriever import Ranked
from doubles.toy_world import answer, search

from research_rl.agents import (
    CachedEngine,
    Generation,
    LocalGenerator,
    OpenAIGenerator,
    Prediction,
    ReSearch,
    ReSearchAgent,
    SamplingParams,
    ServedReSearchAgent,
)
from research_rl.agents.methods.generators import ModelInput
from research_rl.envs import Question

QUESTIONS = [Question(f"q{i}", f"Who owns house {i}?", (f"Owner {i}",)) for i in range(3)]


def make_env(**options: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
    options = {"index": Ranked(), "top_k": 1, **options}
    return gym.make_vec(
        "research_rl.envs:ReSearch-v0", num_envs=1, autoreset_mode="Disabled", **options
    )


def player(one: ModelInput) -> Generation:
    """Searches once, then answers with the number of the house."""
    text = flat(one)
    number = text.rpartition("house ")[2][0]
    if "</result>" in text.rpartition("house ")[2] or f"<search> {number} </search>" in text:
        return Generation(answer(f"Owner {number}"), "eos", 7, len(text.split()))
    return Generation(search(number), "stop", 5, len(text.split()))


def test_it_searches_and_answers_all_questions_round_by_round() -> None:
    retriever, model = Ranked(), Scripted(player)
    agent = ReSearch(model, retriever, top_k=1, prompt="{prompt}", max_response_tokens=99)
    predictions = agent.answer(QUESTIONS)
    assert [p.text for p in predictions] == ["Owner 0", "Owner 1", "Owner 2"]
    assert [len(call) for call in model.calls] == [3, 3]
    assert retriever.calls == [["0", "1", "2"]]
    one = predictions[1]
    assert model.calls[1][1] == f"{QUESTIONS[1].text}{search('1')} <result>\n1\nrank 0\n</result>"
    assert [s.role for s in one.steps] == ["model", "environment", "model"]
    assert (one.queries, one.passages[0][0].contents) == (("1",), "1\nrank 0")
    assert (one.finish_reason, one.format_error, one.error) == ("answer", None, None)
    assert (one.sampled_tokens, one.result_tokens) == (12, 5)
    assert one.seconds > 0
    assert agent.answer([]) == []
    agent.close()
    assert agent.env.closed


def test_a_chat_goes_on_with_the_assistants_message() -> None:
    model = Scripted(player)
    ReSearch(model, Ranked(), prompt="instruct").answer(QUESTIONS[:1])
    first, second = model.calls[0][0], model.calls[1][0]
    assert [m["role"] for m in first] == ["system", "user"]  # type: ignore[index]
    assert second[:2] == first
    assert second[2]["role"] == "assistant"  # type: ignore[index]
    assert second[2]["content"].startswith(search("0"))  # type: ignore[index]


def test_it_plays_the_local_policy_as_training_does() -> None:
    policy = tiny.policy(bias={"<search>": 4.0, "</search>": 6.0, "<eos>": 3.0})
    params = {"max_response_tokens": 60, "temperature": 1.0, "seed": 2}
    local = ReSearch(LocalGenerator(policy), Ranked(), 1, prompt="{prompt}", **params)  # type: ignore[arg-type]
    env = make_env(prompt="{prompt}")
    plain = ReSearchAgent(policy, CachedEngine(policy), env, SamplingParams(60), seed=2)
    for ours, theirs in zip(local.answer(QUESTIONS), plain.answer(QUESTIONS), strict=True):
        assert ours.rollout == theirs.rollout
        check_fields(ours)


def check_fields(prediction: Prediction) -> None:
    """The fields that a rollout fills say what the rollout says."""
    rollout = prediction.rollout
    assert rollout is not None
    written = [step.text for step in prediction.steps if step.role == "model"]
    given = [step.text for step in prediction.steps if step.role == "environment"]
    assert (written, given) == (rollout.turns, rollout.results)
    assert prediction.queries == tuple(rollout.queries)
    assert [[p.id for p in found] for found in prediction.passages] == rollout.passage_ids
    total = prediction.sampled_tokens + prediction.result_tokens
    assert total == len(rollout.sequence.response_ids)
    assert prediction.finish_reason == rollout.finish_reason
    assert prediction.format_error == rollout.reward.format_error


def test_an_episode_over_http_is_the_one_played_here() -> None:
    """The server cuts stop strings off and nobody but it counts tokens; nothing else differs."""
    policy = tiny.policy()
    scripts = [[search("0"), search("b"), answer("Owner 0")], [answer("x")], [search("2"), "no"]]

    def say(body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        script = scripts[int(prompt.split("house ")[1][0])]
        turn = script[prompt.count("</result>")]
        tokens = len(policy.encode(turn)) + (not turn.endswith("</search>"))  # the end of sequence
        reply = completion(turn.removesuffix("</search>"))
        counts = {"prompt_tokens": len(policy.encode(prompt)), "completion_tokens": tokens}
        return {**reply, "usage": counts}

    options: dict[str, Any] = {"prompt": "{prompt}", "top_k": 1, "max_response_tokens": 400}
    with model_server(say) as server:
        served = OpenAIGenerator(server.url, "tiny", "completions")
        far = ReSearch(served, Ranked(), **options).answer(QUESTIONS)
    local = LocalGenerator(policy, tiny.ScriptedEngine(policy, scripts))
    near = ReSearch(local, Ranked(), **options).answer(QUESTIONS)
    assert [p.finish_reason for p in near] == ["answer", "answer", "no_answer"]
    for there, here in zip(far, near, strict=True):
        assert here.rollout is not None
        assert there == replace(here, rollout=None, seconds=there.seconds)


def test_the_budget_is_the_episodes() -> None:
    def say(one: ModelInput) -> Generation:
        return Generation(search("q"), "stop", 4, len(flat(one).split()))

    for counts in (True, False):
        model = Scripted(say, tokenizer=counts)
        agent = ServedReSearchAgent(model, make_env(), SamplingParams(30, temperature=0.0))
        prediction = agent.answer(QUESTIONS[:1])[0]
        assert prediction.finish_reason == "length"
        assert prediction.text == ""
        budgets = [each[0].max_response_tokens for each in model.params]  # type: ignore[index]
        assert budgets[0] == 30
        assert budgets == sorted(budgets, reverse=True)
        assert 20 < prediction.sampled_tokens + prediction.result_tokens < 40


def test_a_long_result_loses_passages_where_tokens_can_be_counted() -> None:
    env = make_env(top_k=5)
    params = SamplingParams(200, max_result_tokens=10, temperature=0.0)
    agent = ServedReSearchAgent(Scripted(player), env, params)
    prediction = agent.answer(QUESTIONS[:1])[0]
    assert len(prediction.passages[0]) == 2
    assert prediction.result_tokens <= 10
    with pytest.raises(ValueError, match="max_result_tokens must meet a generator that counts"):
        ServedReSearchAgent(Scripted(player, tokenizer=False), env, params)


def test_a_failed_question_leaves_the_others_alone() -> None:
    def say(one: ModelInput) -> Generation:
        if "house 1" in flat(one) and "<result>" in flat(one).rpartition("house 1")[2]:
            return Generation.failed("status 500")
        return player(one)

    predictions = ServedReSearchAgent(Scripted(say), make_env(prompt="{prompt}")).answer(QUESTIONS)
    bad = predictions[1]
    assert (bad.error, bad.finish_reason, bad.text) == ("status 500", "error", "")
    assert bad.format_error is None
    assert [s.role for s in bad.steps] == ["model", "environment"]
    assert [p.text for p in predictions] == ["Owner 0", "", "Owner 2"]


def test_steps_are_told_as_they_are_made() -> None:
    heard: list[tuple[str, str]] = []
    agent = ServedReSearchAgent(
        Scripted(player),
        make_env(prompt="{prompt}"),
        on_step=lambda question, step: heard.append((question.id, step.role)),
    )
    agent.answer(QUESTIONS[:1])
    assert heard == [("q0", "model"), ("q0", "environment"), ("q0", "model")]

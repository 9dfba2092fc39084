"""The agent answers with what its policy puts into the box."""

from __future__ import annotations

import gymnasium as gym
from doubles import tiny

from research_rl.agents import CachedEngine, ReSearchAgent, SamplingParams
from research_rl.envs import Passage, Question, Retriever


class Nothing(Retriever):
    def search(self, queries: object, k: int) -> list[list[Passage]]:
        return [[Passage("0", "nothing")] for _ in queries]  # type: ignore[attr-defined]


def make_env() -> gym.vector.VectorEnv:
    return gym.make_vec(
        "research_rl.envs:ReSearch-v0", num_envs=1, autoreset_mode="Disabled", index=Nothing()
    )


def test_predictions_come_in_the_order_of_the_questions() -> None:
    policy = tiny.policy()
    scripts = [["<search>q</search>", "<answer>\\boxed{a b}</answer>"], ["no box at all"]]
    agent = ReSearchAgent(policy, tiny.ScriptedEngine(policy, scripts), make_env())
    asked = [Question("1", "Who?", ("a b",)), Question("2", "What?", ("c",))]
    first, second = agent.answer(asked)
    assert [first.question, second.question] == asked
    assert (first.text, second.text) == ("a b", "")
    assert first.rollout is not None
    assert first.rollout.queries == ["q"]


def test_it_is_greedy_by_default() -> None:
    policy = tiny.policy()
    agent = ReSearchAgent(policy, CachedEngine(policy), make_env())
    assert agent.params.temperature == 0
    short = SamplingParams(max_response_tokens=8, temperature=0)
    agent = ReSearchAgent(policy, CachedEngine(policy), make_env(), short)
    asked = [Question(str(i), "Who?", ("x",)) for i in range(2)]
    one, two = agent.answer(asked)
    assert one.rollout is not None
    assert two.rollout is not None
    assert one.rollout.sequence == two.rollout.sequence

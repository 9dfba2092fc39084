"""A sum of terms in an environment: it sees the passages, its parts reach rollouts and rows."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from research_rl.agents.types import Rollout, Sequence
from research_rl.envs import ReSearchVectorEnv
from research_rl.envs.rewards import RewardTerms
from research_rl.envs.types import Passage, Question, Retriever
from research_rl.trainers.measures import measure
from research_rl.trainers.viewer.page import rollout_text, rollouts_html

SEARCH = "<think> t </think> <search> the boss of Bakset </search>"
ANSWER = "<think> t </think> <answer> \\boxed{Domlor} </answer>"
TERMS = {"terms": {"answer": 0.8, "evidence": {"weight": {0: 0.0, 10: 0.2}}}}


class One(Retriever):
    def search(self, queries: Any, k: int) -> list[list[Passage]]:
        return [[Passage("p1", "Bakset\nthe boss of Bakset is Domlor .")] for _ in queries]


def env(**kwargs: Any) -> ReSearchVectorEnv:
    asked = Question("1", "Who?", ("Domlor",), {"gold_ids": ["p1", "p2"]})
    made = gym.make_vec(
        "ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        questions=[asked],
        index=One(),
        **kwargs,
    ).unwrapped
    assert isinstance(made, ReSearchVectorEnv)
    made.reset(seed=0)
    return made


def play(rows: ReSearchVectorEnv, *turns: str) -> Rollout:
    for turn in turns:
        rows.step([turn])
    episode = rows.episodes[0]
    if not episode.done:
        episode.cut("length")
    assert episode.reward is not None
    return Rollout(
        question=episode.question,
        sequence=Sequence([1]),
        reward=episode.reward,
        turns=list(episode.turns),
        results=list(episode.results),
        finish_reason=episode.finish_reason,
        queries=list(episode.queries),
        passage_ids=[[p.id for p in found] for found in episode.passages],
    )


@pytest.mark.parametrize("reward", [TERMS, RewardTerms(**TERMS)])
def test_it_sees_what_was_found(reward: Any) -> None:
    played = play(env(reward=reward), SEARCH, ANSWER)
    assert played.reward.parts == pytest.approx({"answer": 0.8, "evidence": 0.1})
    assert played.reward.value == pytest.approx(0.9)


def test_the_iteration_decides_the_weights() -> None:
    rows = env(reward=TERMS)
    rows.at(5)
    assert play(rows, SEARCH, ANSWER).reward.parts["evidence"] == pytest.approx(0.05)
    other = env(reward=TERMS)
    assert play(other, SEARCH, ANSWER).reward.parts["evidence"] == pytest.approx(0.1)


def test_an_episode_that_is_cut_has_parts_too() -> None:
    cut = play(env(reward=TERMS), SEARCH)
    assert cut.reward.parts == {"answer": 0.0, "evidence": 0.0}
    assert measure(cut)["part_evidence"] == 0.0
    assert play(env(), SEARCH).reward.parts == {}


def test_parts_are_measured_stored_and_shown() -> None:
    played = play(env(reward=TERMS), SEARCH, ANSWER)
    assert measure(played)["part_answer"] == pytest.approx(0.8)
    again = Rollout.from_row(played.to_row())
    assert again.reward == played.reward
    assert "answer +0.80" in rollout_text(played)
    assert '"terms":{"answer":0.8,"evidence":0.1}' in rollouts_html([played])


def test_rewards_without_parts_are_stored_as_before() -> None:
    plain = play(env(), SEARCH, ANSWER)
    assert "parts" not in plain.to_row()
    assert not [name for name in measure(plain) if name.startswith("part_")]


@pytest.mark.parametrize(
    "reward", [{"terms": 3}, {"answer": 1.0}, {"terms": {"answer": 1}, "lo": 0}]
)
def test_a_mapping_that_is_no_sum_is_refused(reward: Any) -> None:
    with pytest.raises(ValueError, match="a reward of terms must be a mapping"):
        env(reward=reward)

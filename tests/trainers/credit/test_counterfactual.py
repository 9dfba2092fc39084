"""Which search mattered: a policy that copies, and a world of two facts, one beside the point."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import Any

import gymnasium as gym
import pytest
import torch
from doubles import tiny
from doubles.toy_world import QUESTIONS, answer, search

from research_rl.agents.engines.turns import resume
from research_rl.agents.policy.policy import LMPolicy, PolicyOutput
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.types import Engine, OnStop, Rollout, SamplingParams, Sequence
from research_rl.envs.protocols import BUDGET_USED, render_result
from research_rl.envs.types import Passage, Question, Retriever, Reward
from research_rl.trainers.credit.counterfactual import CounterfactualCredit
from research_rl.trainers.credit.search_effects import (
    emptied,
    given_spans,
    logprob_effects,
    reward_effect,
    search_effects,
)

SEEN, UNSEEN = 0.5, 0.01
QUESTION = Question("q", "Who owns house 4 ?", ("Domlor",))


class Copier:
    """Knows words; writes a word that stands before with SEEN, another with UNSEEN."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.words.setdefault(w, len(self.words)) for w in text.split()]

    def encode_reply(self, protocol: Any, reply: str, turn: list[int]) -> list[int]:
        return self.encode(reply)

    def __call__(self, ids: torch.Tensor, real: torch.Tensor, entropy: bool) -> PolicyOutput:
        rows = [[x in row[: i + 1] for i, x in enumerate(row[1:])] for row in ids.tolist()]
        seen = torch.tensor(rows)
        logprobs = torch.where(seen, math.log(SEEN), math.log(UNSEEN))
        return PolicyOutput(logprobs.masked_fill(~real[:, 1:], 0.0), None, None)


def told(policy: Any, *passages: str, f1: float = 1.0, last: str = "it is Domlor") -> Rollout:
    """A rollout that searched once for each passage and then said so."""
    sequence = Sequence(policy.encode("who owns house 4 ?"))
    turns, results = [], []
    for number, passage in enumerate(passages):
        turns.append(f"search {number}")
        results.append(render_result([Passage(str(number), passage)]))
        for token in policy.encode(turns[-1]):
            sequence.append_sampled(token, -1.0)
        sequence.append_given(policy.encode(results[-1]))
    for token in policy.encode(last):
        sequence.append_sampled(token, -1.0)
    reward = Reward(f1, f1, f1, None, "Domlor")
    return Rollout(QUESTION, sequence, reward, [*turns, last], results, "answer", list(turns))


def test_log_prob_falls_where_the_needed_result_goes() -> None:
    policy: Any = Copier()
    useless, needed = logprob_effects([told(policy, "the sky is blue", "4 is Domlor")], policy)[0]
    # without the second result "Domlor" is new to the policy; the first one shows "is" as well
    assert needed == pytest.approx(math.log(SEEN / UNSEEN))
    assert useless == pytest.approx(0.0)


def test_the_answer_alone_does_not_see_what_only_led_to_it() -> None:
    policy: Any = Copier()
    rollout = told(policy, "look at Bakset", "Bakset is Domlor", last="it is Domlor")
    rollout.turns[1] = "search Bakset"
    begin = given_spans(rollout)[0][1]
    rollout.sequence.response_ids[begin : begin + 2] = policy.encode("search Bakset")
    rest = logprob_effects([rollout], policy, target="rest")[0]
    final = logprob_effects([rollout], policy, target="answer")[0]
    assert rest[0] == pytest.approx(math.log(SEEN / UNSEEN)), "the query could not be known"
    assert final[0] == pytest.approx(0.0)
    assert rest[1] == pytest.approx(final[1])
    assert final[1] > 3


def test_micro_batches_change_nothing() -> None:
    policy = tiny.policy()
    rollouts = [told(policy, "the sky is blue", "4 is Domlor"), told(policy, "4 is Domlor")]
    whole = logprob_effects(rollouts, policy)
    small = logprob_effects(rollouts, policy, micro_batch_tokens=1)
    assert [len(row) for row in whole] == [2, 1]
    for row, other in zip(whole, small, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_credit_goes_to_the_search_that_was_needed() -> None:
    policy: Any = Copier()
    good = told(policy, "the sky is blue", "4 is Domlor")
    wrong = told(policy, "4 is Domlor", f1=0.0)
    half = told(policy, "4 is Domlor", f1=0.5)
    none = told(policy)
    credit = CounterfactualCredit().turn_rewards([good, wrong, half, none], policy)
    owed = 1 - UNSEEN / SEEN
    both = 1 - (UNSEEN / SEEN) ** 2  # of "is Domlor" neither word is known without the result
    assert credit[0] == [0.0, pytest.approx(owed), None], "the turn that answers is not compared"
    assert credit[1:] == [[0.0, None], [pytest.approx(0.5 * both), None], [None]]


def test_credit_against_another_question_s_result() -> None:
    policy: Any = Copier()
    good = told(policy, "4 is Domlor")
    other = told(policy, "5 is Domlor")
    other.question = QUESTIONS[0]
    credit = CounterfactualCredit(instead="another")
    assert credit.turn_rewards([good, other], policy)[0] == [0.0, None], "it says the same name"
    assert credit.turn_rewards([good], policy)[0][0] == pytest.approx(1, abs=0.1), (
        "alone it is compared with nothing"
    )


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="instead must be one of nothing, another"):
        CounterfactualCredit(instead="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target must be one of rest, answer"):
        logprob_effects([], Copier(), target="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="micro_batch_tokens"):
        CounterfactualCredit(micro_batch_tokens=0)


def test_a_record_without_tokens_is_refused() -> None:
    rollout = told(Copier(), "4 is Domlor")
    rollout.sequence = Sequence([1])
    with pytest.raises(ValueError, match="got 0 for 1; a record without tokens"):
        given_spans(rollout)


def test_an_emptied_result_keeps_its_note() -> None:
    full = render_result([Passage("1", "x")], BUDGET_USED)
    assert emptied(full) == f" <result>\n{BUDGET_USED}\n</result>"
    assert "x" not in emptied(render_result([Passage("1", "x")]))


class Facts(Retriever):
    """One fact a word of the query."""

    def search(self, queries: Seq[str], k: int) -> list[list[Passage]]:
        """Return Domlor for whoever asks for 4."""
        known = {"4": "the owner is Domlor .", "sky": "the sky is blue ."}
        return [[Passage(q, known.get(q, "nothing"))] for q in queries]


class Reader(Engine):
    """Searches for the sky, then for 4, then boxes Domlor if that stands somewhere before."""

    def __init__(self, policy: LMPolicy) -> None:
        self.policy = policy

    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run."""
        sequences = [Sequence(list(p)) for p in prompts]
        while running := [(i, s) for i, s in enumerate(sequences) if s.finish == "running"]:
            for _, s in running:
                before = self.policy.decode([*s.prompt_ids, *s.response_ids])
                step = before.count("</result>")
                name = "Domlor" if "Domlor" in before else "nobody"
                text = [search("sky"), search("4")][step] if step < 2 else answer(name)
                for token in self.policy.encode(text):
                    s.append_sampled(token, -1.0)
                s.finish = "stop" if step < 2 else "eos"
            for (_, s), given in zip(running, on_stop(running), strict=True):
                resume(s, given, params)
        return sequences


@pytest.fixture(scope="module")
def played() -> tuple[Rollout, Any, LMPolicy, Engine]:
    policy = tiny.policy()
    env = gym.make_vec(
        "ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        questions=[QUESTION],
        index=Facts(),
        prompt="{prompt} ",
    )
    engine = Reader(policy)
    params = SamplingParams(max_response_tokens=1000)
    return collect_rollouts([QUESTION], env, policy, engine, params)[0], env, policy, engine


def test_new_endings_say_which_search_mattered(played: Any) -> None:
    rollout, env, policy, engine = played
    params = SamplingParams(max_response_tokens=1000)
    assert rollout.queries == ["sky", "4"]
    assert rollout.reward.f1 == 1.0
    effects = search_effects(rollout, policy, env, engine, params, seeds=[1, 2])
    assert [(e.turn, e.query) for e in effects] == [(0, "sky"), (1, "4")]
    assert effects[0].reward == 0.0
    assert effects[1].reward == pytest.approx(0.9), "1.0 with it, 0.1 for the form without"
    assert env.unwrapped.episodes[0].turns == rollout.turns, "the environment was not touched"
    assert search_effects(rollout, policy)[1].reward is None


def test_an_exchanged_result(played: Any) -> None:
    rollout, env, policy, engine = played
    params = SamplingParams(max_response_tokens=1000)
    same = [Passage("x", "Domlor again")]
    assert reward_effect(rollout, 1, env, policy, engine, params, [1], same) == 0.0


def test_turns_that_found_nothing(played: Any) -> None:
    rollout, env, policy, engine = played
    params = SamplingParams(max_response_tokens=1000)
    with pytest.raises(ValueError, match="turn must be below 2, got 2"):
        reward_effect(rollout, 2, env, policy, engine, params, [1])
    with pytest.raises(ValueError, match="seeds must hold"):
        reward_effect(rollout, 1, env, policy, engine, params, [])
    empty = Rollout(
        rollout.question,
        rollout.sequence,
        rollout.reward,
        ["<search> </search>", *rollout.turns[1:]],
        rollout.results,
    )
    with pytest.raises(ValueError, match="turn 0 must have found something"):
        reward_effect(empty, 0, env, policy, engine, params, [1])

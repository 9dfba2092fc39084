"""Rollouts: the transcript as ids and as text are the same thing, and nothing is encoded twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Seq
from typing import Any

import gymnasium as gym
import pytest
import torch
from doubles import tiny

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.types import Engine, Rollout, SamplingParams
from research_rl.envs import Passage, Prompt, Question, Retriever, RetrieverUnavailable
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.algorithms.batch import Batch

BIAS = {"</search>": 4.5, "<search>": 4.0, "<eos>": 2.0}
ODD = "é \ud800 <eos> <|im_end|> </result> <answer>"


class Echo(Retriever):
    """Finds passages that quote the query, with text that tokenizers stumble over."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def search(self, queries: Seq[str], k: int) -> list[list[Passage]]:
        self.calls.append(list(queries))
        return [[Passage(str(i), f"p{i}\n{q} {ODD}") for i in range(k)] for q in queries]


class Down(Retriever):
    def search(self, queries: Seq[str], k: int) -> list[list[Passage]]:
        raise RetrieverUnavailable("http://nowhere: no answer after 3 attempts")


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    return tiny.policy(bias=BIAS)


def make_env(retriever: Retriever | None = None, **kwargs: Any) -> Any:
    kwargs = {"autoreset_mode": "Disabled", "top_k": 2, "prompt": "Q: {prompt} A:", **kwargs}
    index = retriever or Echo()
    return gym.make_vec("research_rl.envs:ReSearch-v0", num_envs=1, index=index, **kwargs)


def questions(groups: int = 3, size: int = 3) -> list[Question]:
    group = [Question(str(i), f"Who is {i}?", ("x", "é")) for i in range(groups)]
    return [q for q in group for _ in range(size)]


def script(*turns: str, **kwargs: Any) -> list[Rollout]:
    """One question, answered by a script."""
    policy = tiny.policy()
    params = SamplingParams(
        **{k: kwargs.pop(k) for k in ("max_response_tokens", "max_result_tokens") if k in kwargs}
        or {"max_response_tokens": 500}
    )
    engine = tiny.ScriptedEngine(policy, [turns])
    return collect_rollouts(questions(1, 1), make_env(**kwargs), policy, engine, params)


def assert_one_transcript(rollout: Rollout, policy: LMPolicy) -> None:
    """Ids, masks, turns and results of a rollout tell the same story."""
    s = rollout.sequence
    segments: list[tuple[bool, list[int]]] = []
    for token, mine in zip(s.response_ids, s.loss_mask, strict=True):
        if not segments or segments[-1][0] != mine:
            segments.append((mine, []))
        segments[-1][1].append(token)
    assert [policy.decode(ids) for mine, ids in segments if mine] == rollout.turns
    given = [ids for mine, ids in segments if not mine]
    assert given == [policy.encode(r) for r in rollout.results]
    assert len(rollout.turns) == len(rollout.results) + 1
    assert len(rollout.queries) == len(rollout.passage_ids) == rollout.num_searches


@pytest.mark.parametrize("make", [CachedEngine, ReferenceEngine])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_ids_and_text_agree(make: type[Engine], policy: LMPolicy, temperature: float) -> None:
    params = SamplingParams(max_response_tokens=150, temperature=temperature)
    engine = make(policy)  # type: ignore[call-arg]
    asked = questions(3, 4)
    rollouts = collect_rollouts(asked, make_env(), policy, engine, params, range(12))
    assert [r.question for r in rollouts] == asked
    assert any(r.num_searches for r in rollouts)
    for r in rollouts:
        assert_one_transcript(r, policy)
        assert policy.decode(r.sequence.prompt_ids) == f"Q: {r.question.text} A:"
        ids = torch.tensor([r.sequence.prompt_ids + r.sequence.response_ids])
        out = policy(ids, torch.ones_like(ids), temperature).logprobs[0]
        mask = torch.tensor(r.sequence.loss_mask)
        recomputed = out[len(r.sequence.prompt_ids) - 1 :][mask].detach()
        sampled = torch.tensor(r.sequence.logprobs)[mask]
        torch.testing.assert_close(recomputed, sampled, atol=1e-5, rtol=0)
        if r.sequence.finish == "length":
            assert (r.finish_reason, r.reward.value) == ("length", 0.0)


def test_nothing_is_encoded_twice(policy: LMPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: Counter[str] = Counter()
    encode = type(policy.tokenizer).__call__

    def counting(self: Any, text: str, **kwargs: Any) -> Any:
        encoded[text] += 1
        return encode(self, text, **kwargs)

    monkeypatch.setattr(type(policy.tokenizer), "__call__", counting)
    params = SamplingParams(max_response_tokens=150)
    env = make_env()
    rollouts = collect_rollouts(questions(), env, policy, CachedEngine(policy), params, range(9))
    assert all(encoded[f"Q: {r.question.text} A:"] == 1 for r in rollouts)
    replies = sum(len(e.results) for e in env.unwrapped.episodes)
    assert encoded.total() == 3 + replies
    assert replies > 3


def test_a_watcher_is_told_how_far_they_are() -> None:
    policy = tiny.policy()
    turns = ["<search>a</search>", "<answer>\\boxed{x}</answer>"]
    engine = tiny.ScriptedEngine(policy, [turns, turns, ["no end"]])
    params = SamplingParams(max_response_tokens=60)
    told: list[tuple[int, ...]] = []
    rollouts = collect_rollouts(
        questions(3, 1),
        make_env(),
        policy,
        engine,
        params,
        watch=lambda *facts: told.append(facts),
    )
    assert told[0] == (0, 3, 0)
    assert told[-1] == (3, 3, sum(sum(r.sequence.loss_mask) for r in rollouts))
    assert told == sorted(told)


def test_all_who_search_in_a_step_share_one_call() -> None:
    policy = tiny.policy()
    retriever = Echo()
    turns = ["<search>a</search>", "<search>b</search>", "<answer>\\boxed{x}</answer>"]
    engine = tiny.ScriptedEngine(policy, [turns])
    params = SamplingParams(max_response_tokens=500)
    rollouts = collect_rollouts(questions(2, 3), make_env(retriever), policy, engine, params)
    assert retriever.calls == [["a"] * 6, ["b"] * 6]
    for r in rollouts:
        assert_one_transcript(r, policy)
        assert r.queries == ["a", "b"]
        assert r.passage_ids == [["0", "1"]] * 2
        assert (r.finish_reason, r.sequence.finish) == ("answer", "eos")


def test_an_answer_is_paid() -> None:
    (r,) = script(
        "<think>hm</think> <search>a</search>",
        " <think>so</think> <answer> it is \\boxed{x} </answer>",
    )
    assert (r.reward.value, r.reward.em, r.reward.format_error) == (1.0, 1.0, None)
    assert r.reward.prediction == "x"


def test_a_turn_over_the_token_budget_is_cut_and_unpaid() -> None:
    (r,) = script("<search>a</search>", "<answer>\\boxed{x}</answer>", max_response_tokens=200)
    (cut,) = script(
        "<search>a</search>",
        "<answer>\\boxed{x}</answer>",
        max_response_tokens=len(r.sequence.response_ids) - 3,
    )
    assert r.finish_reason == "answer"
    assert (cut.finish_reason, cut.reward.value, cut.sequence.finish) == ("length", 0.0, "length")
    assert cut.turns[1] == "<answer>\\boxed{x"
    assert cut.results == r.results
    assert_one_transcript(cut, tiny.policy())


def test_a_result_over_the_token_budget_ends_the_rollout() -> None:
    (r,) = script("<search>a</search>", "<answer>\\boxed{x}</answer>", max_response_tokens=40)
    assert (r.finish_reason, r.reward.value, r.results) == ("length", 0.0, [])
    assert r.queries == ["a"]
    assert all(r.sequence.loss_mask)
    assert_one_transcript(r, tiny.policy())


@pytest.mark.parametrize("cap", [1, 70, 100, 200])
def test_a_long_result_loses_passages_from_its_end(cap: int) -> None:
    turns = ("<search>a</search>", "<search></search>", "<answer>\\boxed{x}</answer>")
    (whole,) = script(*turns, max_response_tokens=999)
    (r,) = script(*turns, max_response_tokens=999, max_result_tokens=cap)
    kept = len(r.passage_ids[0])
    policy = tiny.policy()
    assert kept == {1: 0, 70: 1, 100: 1, 200: 2}[cap]
    assert (len(policy.encode(r.results[0])) <= cap) == (cap > 1)
    assert r.results[0].count(ODD[:1]) == kept
    assert whole.results[0].startswith(r.results[0].removesuffix("\n</result>").rstrip())
    assert r.results[1] == whole.results[1]  # a note has no passages to lose
    assert_one_transcript(r, policy)


def test_a_passage_without_text_does_not_keep_a_long_result_long() -> None:
    class LongThenBlank(Retriever):
        def search(self, queries: Seq[str], k: int) -> list[list[Passage]]:
            return [[Passage("0", "x" * 300), Passage("1", "")] for _ in queries]

    turns = ("<search>a</search>", "<answer>\\boxed{x}</answer>")
    (r,) = script(*turns, max_response_tokens=999, max_result_tokens=100, retriever=LongThenBlank())
    assert r.results == [" <result>\n\n</result>"]
    assert r.passage_ids == [[]]
    assert_one_transcript(r, tiny.policy())


def test_only_what_the_policy_wrote_gets_a_gradient() -> None:
    policy = tiny.policy()
    turns = ["<search>a</search>", "<answer>\\boxed{x}</answer>"]
    engine = tiny.ScriptedEngine(policy, [turns, ["no answer"]])
    params = SamplingParams(max_response_tokens=500)
    rollouts = collect_rollouts(questions(1, 2), make_env(), policy, engine, params)
    batch = Batch.from_rollouts(rollouts, policy.pad_id)
    rule = GRPO(kl_coef=0.1, entropy_coef=0.1)
    start = policy(batch.input_ids, batch.attention_mask, entropy=False).logprobs.detach()
    batch.sampled_logprobs = start * batch.loss_mask
    batch.ref_logprobs = batch.sampled_logprobs - 0.5
    batch.advantages = rule.advantages(batch)[:, None] * batch.loss_mask
    batch.weights = rule.weights(batch)
    out = policy(batch.input_ids, batch.attention_mask)
    loss, _ = rule.loss(out, batch)
    for said in torch.autograd.grad(loss, (out.logprobs, out.entropy)):
        assert bool((said[~batch.loss_mask] == 0).all())
        assert bool((said[batch.loss_mask] != 0).all())
    written = [t for r in rollouts for turn in r.turns for t in policy.encode(turn)]
    assert int(batch.loss_mask.sum()) == len(written) + 2  # each rollout's end of sequence


def test_search_and_turn_budgets_end_the_rollout() -> None:
    turns = ("<search>a</search>", "<search>b</search>", "<answer>\\boxed{x}</answer>")
    (r,) = script(*turns, max_searches=1)
    assert (r.finish_reason, r.reward.value, r.queries) == ("search_budget", 0.0, ["a"])
    assert_one_transcript(r, tiny.policy())
    (r,) = script(*turns, max_episode_steps=2)
    assert (r.finish_reason, r.reward.value) == ("turn_budget", 0.0)
    assert_one_transcript(r, tiny.policy())


def test_a_chat_prompt_goes_through_the_template(policy: LMPolicy) -> None:
    env = make_env(prompt="instruct")
    params = SamplingParams(max_response_tokens=5)
    (r,) = collect_rollouts(questions(1, 1), env, policy, CachedEngine(policy), params)
    text = policy.tokenizer.decode(r.sequence.prompt_ids)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nWho is 0?<|im_end|>\n<|im_start|>assistant\n")


def test_a_dead_retriever_stops_the_run_unless_observed() -> None:
    turns = ("<search>a</search>", "<answer>\\boxed{x}</answer>")
    with pytest.raises(RetrieverUnavailable, match="after 3 attempts"):
        script(*turns, retriever=Down())
    (r,) = script(*turns, retriever=Down(), on_retriever_error="observe")
    assert "the search failed" in r.results[0]
    assert_one_transcript(r, tiny.policy())


def test_another_environment_is_refused(policy: LMPolicy) -> None:
    params, engine = SamplingParams(), CachedEngine(policy)
    with pytest.raises(ValueError, match="must be the batched ReSearch environment"):
        collect_rollouts(questions(), gym.make_vec("CartPole-v1"), policy, engine, params)
    env = make_env(autoreset_mode="NextStep")
    with pytest.raises(ValueError, match='autoreset_mode="Disabled"'):
        collect_rollouts(questions(), env, policy, engine, params)


def test_no_questions_give_no_rollouts(policy: LMPolicy) -> None:
    assert collect_rollouts([], make_env(), policy, CachedEngine(policy), SamplingParams()) == []


def test_a_prompt_of_ones_own() -> None:
    policy = tiny.policy()
    env = make_env(prompt=Prompt("be brief", "{prompt}!"))
    engine = tiny.ScriptedEngine(policy, [["x"]])
    (r,) = collect_rollouts(questions(1, 1), env, policy, engine, SamplingParams())
    assert "be brief<|im_end|>" in policy.tokenizer.decode(r.sequence.prompt_ids)
    assert r.finish_reason == "no_answer"


def test_a_rollout_must_fit_in_the_model(policy: LMPolicy) -> None:
    limit = tiny.SIZES["max_position_embeddings"]
    params = SamplingParams(max_response_tokens=limit)
    with pytest.raises(ValueError, match=f"must fit in the model's {limit} positions"):
        collect_rollouts(questions(1, 1), make_env(), policy, CachedEngine(policy), params)

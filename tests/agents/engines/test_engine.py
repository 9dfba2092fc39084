"""What every engine promises, shown on the plain one; those with a cache are held to it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from doubles import tiny

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.engines.streaming import StreamingEngine
from research_rl.agents.engines.turns import TurnEnd
from research_rl.agents.engines.turnwise import TurnwiseEngine
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import Engine, SamplingParams, Sequence

ENGINES = [ReferenceEngine, CachedEngine, TurnwiseEngine]
BIAS = {"</search>": 4.0, "<search>": 4.0, "<eos>": 2.0, "<|im_end|>": 2.0}
BUDGET = 60


class Searcher:
    """Answers a stop with a result that depends on the turn, and an end with nothing."""

    def __init__(self, policy: LMPolicy) -> None:
        self.policy = policy
        self.calls: list[list[int]] = []
        self.replies: dict[int, list[list[int]]] = {}

    def __call__(self, stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        self.calls.append([i for i, _ in stopped])
        return [self.reply(i, s) for i, s in stopped]

    def reply(self, i: int, s: Sequence) -> list[int] | None:
        assert s.finish in ("stop", "eos")
        if s.finish == "eos":
            return None
        text = self.policy.decode(s.turn_ids)
        given = self.policy.encode(f" <result>\n{text[:10]}\n</result>")
        self.replies.setdefault(i, []).append(given)
        return given


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    return tiny.policy(bias=BIAS)


def play(
    make: Callable[[LMPolicy], Engine], policy: LMPolicy, **params: Any
) -> tuple[list[Sequence], Searcher]:
    prompts = [policy.encode(t) for t in ("hello world", "who?", "hello world", "hello world")]
    settings = SamplingParams(**{"max_response_tokens": BUDGET, **params})
    searcher = Searcher(policy)
    return make(policy).run(prompts, settings, searcher, seeds=[5, 6, 7, 8]), searcher


@pytest.mark.parametrize("make", ENGINES)
def test_a_sequence_is_turns_and_replies_in_turn(
    make: Callable[[LMPolicy], Engine], policy: LMPolicy
) -> None:
    sequences, searcher = play(make, policy)
    end = TurnEnd(policy, ("</search>",))
    assert any(searcher.replies.values())
    for i, s in enumerate(sequences):
        assert len(s.response_ids) == len(s.loss_mask) == len(s.logprobs) <= BUDGET
        given = [t for t, m in zip(s.response_ids, s.loss_mask, strict=True) if not m]
        replies = searcher.replies.get(i, [])
        given_whole = [[t for r in replies[:n] for t in r] for n in (len(replies), -1)]
        assert given in given_whole
        assert s.finish == ("eos" if end.of(s.turn_ids) == "eos" else "length")
        sampled = [t for t, m in zip(s.response_ids, s.loss_mask, strict=True) if m]
        assert not policy.eos_ids & set(sampled[:-1])
        assert all(p == 0 for p, m in zip(s.logprobs, s.loss_mask, strict=True) if not m)


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_sampled_log_probs_are_the_recomputed_ones(
    make: Callable[[LMPolicy], Engine], policy: LMPolicy, temperature: float
) -> None:
    for s in play(make, policy, temperature=temperature)[0]:
        ids = torch.tensor([s.prompt_ids + s.response_ids])
        out = policy(ids, torch.ones_like(ids), temperature or 1.0)
        mask = torch.tensor(s.loss_mask)
        recomputed = out.logprobs[0, len(s.prompt_ids) - 1 :][mask]
        torch.testing.assert_close(
            recomputed.detach(), torch.tensor(s.logprobs)[mask], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("make", ENGINES)
def test_equal_seeds_give_equal_samples(
    make: Callable[[LMPolicy], Engine], policy: LMPolicy
) -> None:
    prompt, searcher = policy.encode("hello world"), Searcher(policy)
    params = SamplingParams(max_response_tokens=BUDGET)
    twins = make(policy).run([prompt] * 3, params, searcher, seeds=[7, 7, 8])
    assert twins[0] == twins[1] != twins[2]
    assert twins[0].response_ids == play(make, policy)[0][2].response_ids
    torch.manual_seed(3)
    one = make(policy).run([prompt] * 2, params, searcher)
    torch.manual_seed(3)
    two = make(policy).run([prompt] * 2, params, searcher)
    assert one == two
    assert one[0] != one[1]


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("size", [0, 1, 9, 10, 11])
def test_a_reply_must_leave_room_for_a_token(make: Callable[[LMPolicy], Engine], size: int) -> None:
    policy = tiny.policy(bias={"</search>": 1000.0})
    stop = policy.encode("</search>")
    params = SamplingParams(max_response_tokens=12)
    prompts = [policy.encode("q")]
    s = make(policy).run(prompts, params, lambda stopped: [stop * size for _ in stopped])[0]
    turns = 12 // (size + 1) + (12 % (size + 1) > 0)
    assert len(s.response_ids) == (size + 1) * turns - size
    assert sum(s.loss_mask) == turns
    assert s.finish == "length"


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_turn_ends_before_min_new_tokens(
    make: Callable[[LMPolicy], Engine], temperature: float
) -> None:
    policy = tiny.policy(bias={"<eos>": 9.0})
    short, _ = play(make, policy, temperature=temperature)
    assert min(len(s.response_ids) for s in short) < 10
    sequences, searcher = play(make, policy, temperature=temperature, min_new_tokens=10)
    table = TurnEnd(policy, ("</search>",)).table
    assert searcher.calls
    for s in sequences:
        assert len(s.response_ids) >= 10
        assert not table[s.response_ids[:9]].any()
    assert any(len(s.response_ids) < 20 for s in sequences)
    s = sequences[0]  # the log-prob is that of the distribution without the ends
    with torch.no_grad():
        logits = policy.model(torch.tensor([s.prompt_ids])).logits[0, -1].float()
    expected = logits.masked_fill(table, -torch.inf).log_softmax(-1)[s.response_ids[0]]
    assert s.logprobs[0] == pytest.approx(float(expected), abs=1e-5)


def test_all_engines_suppress_the_same_ends() -> None:
    policy = tiny.policy(bias={"</search>": 6.0, "<eos>": 4.0})
    theirs, *others = (play(make, policy, min_new_tokens=7)[0] for make in ENGINES)
    for ours in others:
        assert [s.response_ids for s in ours] == [s.response_ids for s in theirs]


def streaming(policy: LMPolicy) -> Engine:
    return StreamingEngine(policy, lambda who, text: None)


@pytest.mark.parametrize("make", [*ENGINES, streaming])
def test_bad_input_is_refused(make: Callable[[LMPolicy], Engine], policy: LMPolicy) -> None:
    engine, params = make(policy), SamplingParams()
    assert engine.run([], params, Searcher(policy)) == []
    with pytest.raises(ValueError, match="at least one token, got none for prompt 1"):
        engine.run([[1], []], params, Searcher(policy))
    with pytest.raises(ValueError, match="one for each prompt, got 1 for 2"):
        engine.run([[1], [1]], params, Searcher(policy), seeds=[1])
    with pytest.raises(ValueError, match="temperature must be"):
        engine.run([[1]], SamplingParams(temperature=-1), Searcher(policy))
    with pytest.raises(ValueError, match="stop must hold non-empty"):
        engine.run([[1]], SamplingParams(stop=("",)), Searcher(policy))


@pytest.mark.parametrize("make", ENGINES)
def test_a_diverged_model_is_an_error(make: Callable[[LMPolicy], Engine]) -> None:
    policy = tiny.policy()
    engine = make(policy)
    params = SamplingParams(max_response_tokens=4)
    engine.run([[1]], params, Searcher(policy))
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(torch.nan)
    for temperature, top_p in ((1.0, 1.0), (1.0, 0.9), (0.0, 1.0)):
        params = SamplingParams(temperature=temperature, top_p=top_p)
        with pytest.raises(FloatingPointError, match="must be finite"):
            engine.run([[1]], params, Searcher(policy))


@pytest.mark.parametrize("make", ENGINES)
def test_modes_are_put_back(make: Callable[[LMPolicy], Engine]) -> None:
    policy = tiny.policy()
    policy.train()
    policy.model.lm_head.eval()
    attention = policy.model.config._attn_implementation
    play(make, policy)
    assert policy.model.training
    assert not policy.model.lm_head.training
    assert policy.model.config._attn_implementation == attention


def test_the_vocabulary_is_read_anew_for_other_stop_strings_only(policy: LMPolicy) -> None:
    end = TurnEnd(policy, ("</search>",))
    assert end.at(["</search>"]) is end
    other = end.at(("</answer>",))
    assert other.stop == ("</answer>",)
    assert torch.equal(other.table, TurnEnd(policy, ("</answer>",)).table)


def test_a_stop_string_may_end_inside_a_token() -> None:
    policy = tiny.policy(tags=False)
    end = TurnEnd(policy, ("</search>",))
    merged = policy.encode("<search>x</search>\n")
    assert policy.decode(merged[-1:]) == ">\n"
    verdicts = [end.of(merged[: i + 1]) for i in range(len(merged))]
    assert verdicts == ["running"] * (len(merged) - 1) + ["stop"]
    assert end.of(policy.encode("<search>x</search >\n")) == "running"
    assert end.of(policy.encode("x>\n")) == "running"


def test_the_short_stop_test_agrees_with_the_whole_text() -> None:
    policy = tiny.policy(tags=False)
    stops = ("</search>", "é", "a\nb", "search")
    end = TurnEnd(policy, stops)
    generator = torch.Generator().manual_seed(0)
    alphabet = policy.encode("</search>\n aébx") + policy.encode("search")
    for _ in range(300):
        pick = torch.randint(len(alphabet), (12,), generator=generator)
        turn = [alphabet[i] for i in pick]
        for size in range(1, len(turn) + 1):
            text = policy.decode(turn[:size])
            assert (end.of(turn[:size]) == "stop") == any(s in text for s in stops)
            if any(s in text for s in stops):
                break

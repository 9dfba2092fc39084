"""Credit for turns against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from doubles import tiny

from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import Rollout, Sequence
from research_rl.envs.protocols import PROTOCOLS, Answer, Opened
from research_rl.envs.types import Question, Reward
from research_rl.trainers.credit.turns import InformationGain, StepGroups, transcripts

PREFIX = "answer: "


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    return tiny.policy()


def rollout(
    policy: LMPolicy,
    turns: list[str],
    results: list[str],
    reward: float = 0.0,
    answers: tuple[str, ...] = ("blue",),
) -> Rollout:
    """Turns and results that alternate, behind one prompt."""
    sequence = Sequence(policy.encode("Which colour?"))
    for number, turn in enumerate(turns):
        for token in policy.encode(turn):
            sequence.append_sampled(token, -1.0)
        if number < len(results):
            sequence.append_given(policy.encode(results[number]))
    return Rollout(
        question=Question("1", "Which colour?", answers, {}),
        sequence=sequence,
        reward=Reward(reward),
        turns=turns,
        results=results,
    )


def by_hand(policy: LMPolicy, text: str, answer: str) -> float:
    """Mean log-prob of the answer behind the text, from the model's own logits."""
    given, wanted = policy.encode(text) + policy.encode(PREFIX), policy.encode(answer)
    with torch.no_grad():
        logits = policy.model(torch.tensor([given + wanted])).logits[0]
    logprobs = logits.log_softmax(-1)
    found = [float(logprobs[len(given) + i - 1, token]) for i, token in enumerate(wanted)]
    return sum(found) / len(found)


SEARCHED = (
    ["<search>sky</search>", "and <search>sea</search>", "it is blue"],
    ["[1] up", "[2] wet"],
)


def near(value: float) -> object:
    """Equal but for rounding."""
    return pytest.approx(value, abs=1e-5)


STATES = ("Which colour?", "<search>sky</search>[1] up", "and <search>sea</search>[2] wet")


def expected(policy: LMPolicy, answer: str) -> list[float]:
    """The log-prob of the answer before each turn."""
    return [by_hand(policy, "".join(STATES[:n]), answer) for n in (1, 2, 3)]


def test_information_gain_by_hand(policy: LMPolicy) -> None:
    before = expected(policy, "blue")
    logs = InformationGain(PREFIX, "logprob").turn_rewards([rollout(policy, *SEARCHED)], policy)
    gains = [before[1] - before[0], before[2] - before[1]]
    assert logs == [[*map(near, gains), None]]
    assert abs(gains[0]) > 1e-3
    odds = InformationGain(PREFIX).turn_rewards([rollout(policy, *SEARCHED)], policy)
    chances = [math.exp(x) for x in before]
    gains = [chances[1] - chances[0], chances[2] - chances[1]]
    assert odds == [[*(pytest.approx(gain, rel=1e-4) for gain in gains), None]]


def test_the_likeliest_of_several_answers_counts(policy: LMPolicy) -> None:
    played = rollout(policy, *SEARCHED, answers=("blue", "azure sky", "green"))
    found = InformationGain(PREFIX, "logprob", max_answers=2).turn_rewards([played], policy)
    both = zip(expected(policy, "blue"), expected(policy, "azure sky"), strict=True)
    best = [max(pair) for pair in both]
    assert found == [[near(best[1] - best[0]), near(best[2] - best[1]), None]]


def test_the_cut_into_passes_changes_nothing_and_equal_transcripts_are_scored_once(
    policy: LMPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = [
        rollout(policy, *SEARCHED),
        rollout(policy, ["it is blue"], []),
        rollout(policy, ["<search>the whole wide sea</search>", "x"], ["[3] a b c d e f"]),
        rollout(policy, *SEARCHED),
    ]
    scored: list[int] = []
    forward = policy.forward

    def spy(ids: torch.Tensor, *args: object, **options: object) -> object:
        scored.append(len(ids))
        return forward(ids, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(policy, "forward", spy)
    whole = InformationGain(PREFIX).turn_rewards(rollouts, policy)
    assert scored == [4]  # the prompt, two more states of the first, one of the third
    single = InformationGain(PREFIX, micro_batch_tokens=1).turn_rewards(rollouts, policy)
    assert scored[1:] == [1] * 4
    for one, other in zip(whole, single, strict=True):
        assert [None if x is None else near(x) for x in other] == one
    assert whole[0] == whole[3]
    assert whole[1] == [None]


def test_a_rollout_that_ends_with_a_result_knows_what_it_brought(policy: LMPolicy) -> None:
    turns, results = SEARCHED
    cut = rollout(policy, turns[:2], results)
    assert len(transcripts(cut)) == 3
    found = InformationGain(PREFIX).turn_rewards([cut, rollout(policy, *SEARCHED)], policy)
    assert found[0] == found[1][:2]


def test_a_turn_cut_off_before_its_result_is_not_valued(policy: LMPolicy) -> None:
    turns, results = SEARCHED
    found = InformationGain(PREFIX).turn_rewards([rollout(policy, turns[:2], results[:1])], policy)
    assert found[0][0]
    assert found[0][1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "bits"}, "measure must be one of probability, logprob, got 'bits'"),
        ({"max_answers": 0}, "max_answers must be at least 1, got 0"),
    ],
)
def test_impossible_gains_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InformationGain(**arguments)  # type: ignore[arg-type]


def test_step_groups_by_hand(policy: LMPolicy) -> None:
    rollouts = [
        rollout(policy, ["a", "b", "c"], ["sky", "sea"], reward=1.0),
        rollout(policy, ["d", "e"], ["sky"], reward=0.0),
        rollout(policy, ["f", "g", "h"], ["sea", "sky"], reward=0.6),
        rollout(policy, ["i"], [], reward=0.5),
    ]
    found = StepGroups(discount=0.5, scale_by_std=False).turn_rewards(rollouts, policy)
    # first turns: 0.25, 0, 0.15 and 0.5; behind "sky": 0.5 and 0; behind both: 1 and 0.6
    first = [0.25 - 0.225, -0.225, 0.15 - 0.225, 0.5 - 0.225]
    assert found[0] == pytest.approx([first[0], 0.25, 0.2])
    assert found[1] == pytest.approx([first[1], -0.25])
    assert found[2] == pytest.approx([first[2], 0.0, -0.2])  # alone behind "sea"
    assert found[3] == pytest.approx([first[3]])
    scaled = StepGroups(discount=0.5).turn_rewards(rollouts, policy)
    assert scaled[0][1] == pytest.approx(math.sqrt(0.5), abs=1e-4)


def test_a_discount_prefers_the_shorter_of_two_wrong_answers(policy: LMPolicy) -> None:
    rollouts = [rollout(policy, ["a", "b"], ["sky"], 0.1), rollout(policy, ["c"], [], 0.1)]
    found = StepGroups(discount=0.95).turn_rewards(rollouts, policy)
    assert found[1] == [pytest.approx(math.sqrt(0.5), abs=1e-3)]
    assert StepGroups(discount=1.0).turn_rewards(rollouts, policy) == [[0.0, 0.0], [0.0]]


def test_other_questions_are_other_step_groups(policy: LMPolicy) -> None:
    one, two = rollout(policy, ["a"], [], 1.0), rollout(policy, ["a"], [], 0.0)
    two.question = Question("2", "Which size?", ("big",), {})
    assert StepGroups().turn_rewards([one, two], policy) == [[0.0], [0.0]]


def test_a_discount_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"discount must lie in \(0, 1\], got 1.5"):
        StepGroups(discount=1.5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_answer_is_scored_where_the_dialect_has_it(name: str, policy: LMPolicy) -> None:
    protocol = PROTOCOLS[name]
    played = replace(
        rollout(policy, *SEARCHED),
        protocol=protocol,
        opened=Opened(protocol.begins, protocol.begins * protocol.keeps_eos),
    )
    for turn in range(3):
        opened = played.opened.before(turn, protocol.keeps_eos)
        prefix = InformationGain()._prefix(played, turn)
        assert "I know enough ." in prefix
        closed = prefix + protocol.answer("blue", "I know enough .", opened)[len(prefix) :]
        whole = closed if name != "research" else f"{prefix}blue}} </answer>"
        assert protocol.parse(opened + whole) == Answer("blue")
    assert len(InformationGain().turn_rewards([played], policy)[0]) == 3

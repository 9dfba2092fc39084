"""Rollouts made by hand, for whatever shows or stores them."""

from __future__ import annotations

from typing import Literal

from research_rl.agents.types import Rollout, Sequence
from research_rl.envs.types import Question, Reward

HOSTILE = (
    "</script><script>window.owned=1</script><img src=x onerror='owned=1'>"
    "&lt;b&gt; {{data}} \u2028 \x1b[31m \ud800 \U0001f600 \\u003c <!--"
)


def rollout(
    verdict: Literal["right", "wrong", "format"] = "right",
    question: str = "Who is the boss of Bakset ?",
    passage: str = "Bakset\nthe boss of Bakset is Domlor .",
    id: str | None = None,
    hops: int = 1,
) -> Rollout:
    """One search and one answer; Domlor is right, Veros is wrong."""
    name = "Veros" if verdict == "wrong" else "Domlor"
    turns = [
        "<think> I need the boss of Bakset . </think> <search> the boss of Bakset </search>",
        f"<think> It is {name} . </think> <answer> It is \\boxed{{{name}}}",
    ]
    turns[1] += "" if verdict == "format" else " </answer>"
    sequence = Sequence([1, 2, 3])
    for token in (11, 12, 13):
        sequence.append_sampled(token, -0.5)
    sequence.append_given([21, 22])
    for token in (14, 15):
        sequence.append_sampled(token, -0.1)
    sequence.finish = "eos"
    right = verdict == "right"
    reward = {
        "right": Reward(1.0, 1.0, 1.0, None, name),
        "wrong": Reward(0.1, 0.0, 0.0, None, name),
        "format": Reward(0.0, 0.0, 0.0, "<answer> is not closed"),
    }[verdict]
    metadata = {"hops": hops, "gold_ids": ["p1"]}
    return Rollout(
        question=Question(id or question, question, ("Domlor",), metadata),
        sequence=sequence,
        reward=reward,
        turns=turns,
        results=[f" <result>\n{passage}\n\nVeros\nthe boss of Veros is Tamin .\n</result>"],
        finish_reason="answer" if right or verdict == "wrong" else "no_answer",
        queries=["the boss of Bakset"],
        passage_ids=[["p1", "p2"]],
    )


def rollouts() -> list[Rollout]:
    """Two questions, the second of two hops: right, wrong, format error; right, wrong."""
    second = "Who is the coach of the boss of Bakset ?"
    first = [rollout("right"), rollout("wrong"), rollout("format")]
    return [*first, rollout("right", second, hops=2), rollout("wrong", second, hops=2)]

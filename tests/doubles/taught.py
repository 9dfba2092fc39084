"""A tiny policy that has learned a few episodes by heart: it searches, reads and answers."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from doubles import tiny

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.types import SamplingParams, Sequence
from research_rl.envs import Question
from research_rl.envs.protocols import RESEARCH

PASSAGES = {
    "p1": "Bakset\nthe boss of Bakset is Domlor .",
    "p2": "Domlor\nDomlor was born in Rome .",
    "p3": "Rome\nRome is a city by a river .",
}
SCRIPTS = {
    "Who leads Bakset?": [
        RESEARCH.search("boss of Bakset", thought="I need the boss ."),
        RESEARCH.answer("Domlor", "That is it ."),
    ],
    "Where was the boss of Bakset born?": [
        RESEARCH.search("boss of Bakset", thought="First the boss ."),
        RESEARCH.search("Domlor born", thought="Now his town ."),
        RESEARCH.answer("Rome", "It is Rome ."),
    ],
    "Is water wet?": [RESEARCH.answer("yes", "I know that .")],
}
"""What the policy does with each question."""
BUDGET = 512
"""Tokens of an episode; the longest takes fewer."""


def environment(index: Path | None, **kwargs: Any) -> Any:
    """The environment of the episodes."""
    return gym.make_vec(
        "research_rl.envs:ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        index=index,
        **{"prompt": "{prompt}", "top_k": 1, **kwargs},
    )


def questions(texts: Seq[str]) -> list[Question]:
    """The questions as an asker asks them."""
    return [Question("ask", text, ("",)) for text in texts]


def taught(index: Path, scripts: Mapping[str, Seq[str]] = SCRIPTS) -> LMPolicy:
    """Return a policy that plays these scripts; takes some seconds."""
    policy = tiny.policy(hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.05)
    engine = tiny.ScriptedEngine(policy, list(scripts.values()))
    params = SamplingParams(BUDGET, temperature=0.0)
    asked = questions(list(scripts))
    played = collect_rollouts(asked, environment(index), policy, engine, params)
    learn(policy, [rollout.sequence for rollout in played])
    return policy.requires_grad_(False).eval()


def learn(policy: LMPolicy, sequences: Seq[Sequence], most: int = 600) -> None:
    """Train until every token that was written is by far the likeliest."""
    rows = [[*s.prompt_ids, *s.response_ids] for s in sequences]
    size = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (size - len(row))] for row in rows])
    wanted = torch.full_like(ids, -100)
    for number, s in enumerate(sequences):
        begin = len(s.prompt_ids)
        for place, mine in enumerate(s.loss_mask, begin):
            if mine:
                wanted[number, place] = ids[number, place]
    model: Any = policy.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(most):
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(
            logits, wanted[:, 1:].flatten(), ignore_index=-100, reduction="none"
        )
        if float(losses.detach().max()) < 0.1:
            return
        optimizer.zero_grad()
        (losses.sum() / (losses > 0).sum()).backward()
        optimizer.step()
    raise AssertionError(f"it has not learned them: {float(losses.detach().max())}")


def config(world: Path) -> PolicyConfig:
    """How the policy of a world is loaded."""
    return PolicyConfig(str(world / "policy"))


def options(world: Path) -> list[str]:
    """The command line's options for the agent of a world."""
    model, index = str(world / "policy"), str(world / "index")
    told = ["--model", model, "--index", index, "--prompt", "{prompt}", "--top-k", "1"]
    return [*told, "--max-tokens", str(BUDGET)]

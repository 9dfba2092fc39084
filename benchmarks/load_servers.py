"""The servers of server_load.py, each of which runs in a process of its own."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from hostile_clients import KEY, LONGEST_ANSWER

from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.server import serve_search
from research_rl.envs.types import Passage, Retriever

if TYPE_CHECKING:
    from research_rl.agents import LMPolicy

SERVERS = {"retrieval": "joined", "policy": "policy", "agent": "agent"}
"""The servers of all parts but joining, and how each is started."""
MODES = {"joined": ServerConfig(), "single": ServerConfig(max_batch=1, max_wait_ms=0.0)}


class RandomVectors(Retriever):
    """Exact inner-product search of random vectors; a query's vector is drawn from its text."""

    def __init__(self, passages: int, dim: int) -> None:
        generator = np.random.default_rng(0)
        self.vectors = generator.standard_normal((passages, dim), dtype=np.float32)  # (N, D)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        dim = self.vectors.shape[1]
        drawn = [np.random.default_rng(zlib.crc32(query.encode())) for query in queries]
        asked = np.stack([one.standard_normal(dim, dtype=np.float32) for one in drawn])  # (Q, D)
        scores = asked @ self.vectors.T  # (Q, N)
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        rows = []
        for row, columns in zip(scores, best, strict=True):
            ordered = columns[np.argsort(-row[columns])]
            rows.append([Passage(str(i), f"passage {i}", float(row[i])) for i in ordered])
        return rows


def run_server(mode: str, port: int, passages: int, dim: int) -> None:
    """Serve in a process of its own, without uvicorn's log lines."""
    with open(os.devnull, "w", encoding="utf-8") as sys.stderr:
        if mode == "policy":
            run_policy_server(port)
        elif mode == "agent":
            run_agent_server(port, RandomVectors(passages, dim))
        else:
            serve_search(RandomVectors(passages, dim), port=port, config=MODES[mode])


def run_policy_server(port: int) -> None:
    """Serve a model of random weights, of the quickstart's shape."""
    from research_rl.agents.web import RequestQueue, serve_sampling
    from research_rl.envs.web import listen

    queue = RequestQueue(random_policy(), "policy", max_slots=64)
    serve_sampling(queue, listen("127.0.0.1", port))


def run_agent_server(port: int, retriever: Retriever) -> None:
    """Serve an agent with such a model, which wants a key."""
    import gymnasium as gym

    from research_rl.agents import ReSearchAgent, SamplingParams
    from research_rl.agents.engines import engine_for
    from research_rl.envs.web import listen
    from research_rl.trainers.agent import AgentSettings, Asker, QuestionQueue, serve_agent

    policy = random_policy()
    told = {"index": retriever, "prompt": "{prompt}", "top_k": 1}
    env = gym.make_vec(
        "research_rl.envs:ReSearch-v0", num_envs=1, autoreset_mode="Disabled", **told
    )
    params = SamplingParams(LONGEST_ANSWER, temperature=0.0)
    agent = ReSearchAgent(policy, engine_for(policy), env, params)
    settings = AgentSettings(api_key=KEY)
    serve_agent(QuestionQueue(Asker(agent)), listen("127.0.0.1", port), settings)


def random_policy() -> LMPolicy:
    """Return a model of random weights, of the quickstart's shape."""
    import torch

    from research_rl.agents import LMPolicy
    from research_rl.trainers.warmstart import (
        TAGS,
        WORDS,
        TinyModelConfig,
        tiny_model,
        word_tokenizer,
    )

    torch.set_num_threads(1)
    tokenizer = word_tokenizer([*TAGS, *WORDS])
    return LMPolicy(tiny_model(tokenizer, TinyModelConfig(), seed=0), tokenizer)

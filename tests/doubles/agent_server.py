"""A served agent whose model is a function, and clients that wait for it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from doubles.served_model import Say, Scripted
from doubles.taught import environment
from doubles.toy_retriever import Ranked

from research_rl.agents import SamplingParams, ServedReSearchAgent
from research_rl.envs.protocols import RESEARCH
from research_rl.trainers.agent import Asker, BackgroundAgentServer, QuestionQueue

CHAT = {"model": "research", "messages": [{"role": "user", "content": "Who?"}]}
ROUTES = {"/ask": {"question": "Who?"}, "/v1/chat/completions": CHAT}
"""Where questions are asked, and how."""


def said(told: Any) -> str:
    return str(told["error"]["message"])


def answers(shown: Any) -> str:
    return RESEARCH.answer("Rome", "I know .")


def queue_of(say: Say = answers, max_waiting: int = 64, retriever: Any = None) -> QuestionQueue:
    """A queue in front of a model that says what a function returns."""
    env = environment(retriever or Ranked())
    agent = ServedReSearchAgent(Scripted(say), env, SamplingParams(200, temperature=0.0))
    return QuestionQueue(Asker(agent), max_waiting)


class Stalled:
    """A model that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.asked = 0

    def __call__(self, shown: Any) -> str:
        self.asked += 1
        self.begun.set()
        assert self.go_on.wait(60)
        return RESEARCH.search("boss") if "<result>" not in str(shown) else answers(shown)


def asking(server: BackgroundAgentServer, route: str, **more: Any) -> http.client.HTTPConnection:
    """A client that has asked and waits."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps(ROUTES[route] | more)
    client.request("POST", route, body, {"Content-Type": "application/json"})
    return client


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.005)

"""The routes /health and /metrics, as every server has them."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI

from research_rl.envs.web import Count, ServerCounters, ServerThread, listen, make_app, make_server


def test_a_server_tells_that_it_runs_and_its_counters_as_they_are_now() -> None:
    answered = [0.0]
    waiting = Count("research_waiting", "Questions that wait.", 3, falls=True)
    began = time.time()
    counters = ServerCounters(lambda: (Count("research_answers", "Answers.", answered[0]), waiting))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = make_app("counts", lifespan)
    counters.add_to(app)
    with ServerThread(make_server(app, "warning", grace=5), listen("127.0.0.1", 0)) as server:
        with urllib.request.urlopen(f"{server.url}/health") as reply:
            assert (reply.status, reply.read()) == (200, b"")
        answered[0] = 5.0
        with urllib.request.urlopen(f"{server.url}/metrics") as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=")
            told = reply.read().decode().splitlines()
    assert "# TYPE research_answers_total counter" in told
    assert "research_answers_total 5.0" in told
    assert "# HELP research_waiting Questions that wait." in told
    assert "# TYPE research_waiting gauge" in told
    assert "research_waiting 3.0" in told
    (start,) = (line for line in told if line.startswith("process_start_time_seconds "))
    assert began <= float(start.split()[1]) == counters.started <= time.time()

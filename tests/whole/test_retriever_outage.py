"""A training run whose retrieval server dies and comes back ends as if nothing had happened."""

from __future__ import annotations

import csv
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from doubles.fake_retrieval import FakeRetriever
from doubles.places import TESTS
from doubles.tiny import checkpoint
from doubles.training import Data, LengthReward, env, module, trainer, weights

from research_rl.agents.types import SamplingParams
from research_rl.envs.retrieval.web.client import RemoteRetriever
from research_rl.envs.retrieval.web.server import BackgroundServer
from research_rl.envs.types import Passage, RetrieverUnavailable
from research_rl.trainers.module import ReSearchModule

STEPS = 3
FAULT_AT = 4  # the search that meets the dead server; a run makes about ten


class Watched(RemoteRetriever):
    """Counts its searches and lets something happen before one of them."""

    def __init__(self, url: str, retry_window: float, fault: Callable[[], None]) -> None:
        super().__init__(url, dialect="research", retry_window=retry_window)
        self.searches, self.fault = 0, fault

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.searches += 1
        if self.searches == FAULT_AT:
            self.fault()
        return super().search(queries, k)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    often = {"<search>": 5.5, "</search>": 5.5}
    return checkpoint(tmp_path_factory.mktemp("policy"), bias=often)


def run(
    folder: Path, policy: Path, url: str, fault: Callable[[], None], retry_window: float = 60
) -> tuple[ReSearchModule, Watched]:
    """Train with the server at ``url``."""
    retriever = Watched(url, retry_window, fault)
    settings = env(LengthReward())
    settings.index = retriever
    trained = module(policy, env=settings, sampling=SamplingParams(max_response_tokens=160))
    trainer(folder, STEPS, limit_val_batches=0).fit(trained, Data())
    assert retriever.searches > FAULT_AT + 1
    return trained, retriever


def logged(folder: Path) -> list[dict[str, str]]:
    """Everything a run logged but the time that it took."""
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def undisturbed(folder: Path, policy: Path) -> ReSearchModule:
    with BackgroundServer(FakeRetriever()) as server:
        return run(folder, policy, server.url, lambda: None)[0]


def assert_same(folder: Path, trained: ReSearchModule, other: ReSearchModule) -> None:
    """Metrics, the last rollouts and every weight are those of the run without a fault."""
    rows = logged(folder / "calm")
    assert len(rows) == STEPS
    assert all(row["train/loss"] and row["train/searches"] for row in rows)
    assert logged(folder / "fault") == rows
    texts = [[r.sequence.response_ids for r in one.train_rollouts] for one in (trained, other)]
    assert texts[0] == texts[1]
    assert torch.equal(weights(trained), weights(other))


def test_the_losses_are_those_of_a_run_without_a_fault(policy: Path, tmp_path: Path) -> None:
    calm = undisturbed(tmp_path / "calm", policy)
    servers = [BackgroundServer(FakeRetriever()).__enter__()]
    timers: list[threading.Timer] = []

    def fault() -> None:
        servers[0].stop()
        servers.append(BackgroundServer(FakeRetriever(), port=servers[0].port))
        timers.append(threading.Timer(0.5, servers[1].__enter__))
        timers[0].start()

    try:
        disturbed, _ = run(tmp_path / "fault", policy, servers[0].url, fault)
        assert_same(tmp_path, calm, disturbed)
    finally:
        timers[0].join()
        servers[1].stop()


def test_a_server_that_stays_away_ends_the_run_with_what_to_do(
    policy: Path, tmp_path: Path
) -> None:
    server = BackgroundServer(FakeRetriever()).__enter__()
    with pytest.raises(RetrieverUnavailable, match="resume the run"):
        run(tmp_path, policy, server.url, server.stop, retry_window=0.3)


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from doubles.fake_retrieval import FakeRetriever
from research_rl.envs.retrieval.web.server import serve_search
serve_search(FakeRetriever(delay=float(sys.argv[3])), port=int(sys.argv[2]))
"""


def start(port: int, delay: float) -> subprocess.Popen[bytes]:
    """Start a server in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(TESTS), str(port), str(delay)],
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_a_server_killed_in_the_midst_of_a_search(policy: Path, tmp_path: Path) -> None:
    calm = undisturbed(tmp_path / "calm", policy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = start(port, delay=0.4)
    servers: list[subprocess.Popen[bytes]] = []

    def fault() -> None:
        threading.Timer(0.2, first.kill).start()
        threading.Timer(1.0, lambda: servers.append(start(port, 0.0))).start()

    try:
        disturbed, _ = run(tmp_path / "fault", policy, f"http://127.0.0.1:{port}", fault)
        assert first.wait() == -signal.SIGKILL
        assert_same(tmp_path, calm, disturbed)
    finally:
        for process in [first, *servers]:
            process.kill()
            process.wait()

"""What joining concurrent requests brings: the retrieval server under load on loopback.

A server process searches random vectors exactly; client threads send one query a request over kept
connections, as the rollouts of a training run do. The same requests go to a server that joins them
into batches and to one that searches each alone. Bounded in requests and in time.

    python benchmarks/server_load.py [--clients 1 32] [--requests 640] [--json FILE]
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.server import serve_search
from research_rl.envs.types import Passage, Retriever

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
        serve_search(RandomVectors(passages, dim), port=port, config=MODES[mode])


@contextmanager
def server(mode: str, passages: int, dim: int) -> Iterator[int]:
    """Start a server process; yield its port once it answers; terminate it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=run_server, args=(mode, port, passages, dim), daemon=True)
    process.start()
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.join()


def wait_for(port: int, seconds: float = 60.0) -> None:
    """Return once a search of the server at ``port`` is answered."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask(http.client.HTTPConnection("127.0.0.1", port, timeout=30), "warm up")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def ask(connection: http.client.HTTPConnection, query: str) -> None:
    """Search for one query; raise unless five passages come back."""
    body = json.dumps({"query": query, "top_n": 5})
    connection.request("POST", "/search", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = json.loads(response.read())
    if response.status != 200 or len(found) != 5:
        raise RuntimeError(f"status must be 200 with 5 passages, got {response.status}: {found}")


def load(port: int, clients: int, requests: int, seconds: float) -> tuple[list[float], float]:
    """Return the latency of each request and the wall time of all, both in seconds."""
    latencies: list[float] = []
    errors: list[BaseException] = []
    stop = time.monotonic() + seconds

    def work(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for number in range(client, requests, clients):
                if time.monotonic() > stop:
                    return
                started = time.perf_counter()
                ask(connection, f"query {number} of {client}")
                latencies.append(time.perf_counter() - started)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return latencies, time.perf_counter() - started


def searches(port: int) -> tuple[float, float]:
    """Return how many searches the server has made, and of how many queries."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()

    def value(name: str) -> float:
        found = re.search(rf"^research_batch_queries_{name} (\S+)", text, re.MULTILINE)
        assert found is not None
        return float(found.group(1))

    return value("count"), value("sum")


def measure(mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each number of clients."""
    rows = []
    with server(mode, args.passages, args.dim) as port:
        for clients in args.clients:
            count, queries = searches(port)
            latencies, wall = load(port, clients, args.requests, args.seconds)
            later_count, later_queries = searches(port)
            p50, p99 = np.percentile(latencies, [50, 99]) * 1000
            rows.append(
                {
                    "mode": mode,
                    "clients": clients,
                    "requests": len(latencies),
                    "requests_per_s": len(latencies) / wall,
                    "p50_ms": float(p50),
                    "p99_ms": float(p99),
                    "queries_per_search": (later_queries - queries) / (later_count - count),
                }
            )
    return rows


def main() -> None:
    """Measure both modes and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--requests", type=int, default=640, help="for each number of clients")
    parser.add_argument("--seconds", type=float, default=30.0, help="bound of each measurement")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    rows = [row for mode in MODES for row in measure(mode, args)]
    print(f"{args.passages} x {args.dim} float32, {os.cpu_count()} cores, one BLAS thread")
    print("| server | clients | requests | requests/s | p50 ms | p99 ms | queries a search |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['mode']} | {row['clients']} | {row['requests']} | {row['requests_per_s']:.0f} "
            f"| {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['queries_per_search']:.1f} |"
        )
    if args.json:
        report = {"machine": platform.platform(), "cores": os.cpu_count(), "rows": rows}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**report, "arguments": vars(args)}, file, indent=2)


if __name__ == "__main__":
    main()

"""The retrieval server, the policy server and the served agent under load on loopback.

    python benchmarks/server_load.py [--clients 1 32] [--requests 640] [--json FILE]
    python benchmarks/server_load.py --part hostile memory told stop [--server agent] [--json FILE]

Part ``joining``: what joining concurrent requests brings. A server process searches random vectors
exactly; client threads send one query a request over kept connections, as the rollouts of a
training run do. The same requests go to a server that joins them into batches and to one that
searches each alone.

Part ``hostile``: honest clients of each server, alone and beside clients that do what
hostile_clients.py lists. All are processes of their own; each hostile client makes a pause between
two attempts, for else it would measure who gets the cores. An honest client that is answered 429
asks again when the server says; its latency counts from its first attempt.

Part ``memory``: what a server holds while it answers 20,000 requests, every tenth of them hostile.

Part ``told``: what a server answers to each kind of hostile client. Part ``stop``: seconds from
SIGTERM to the end of a server that all kinds are at. Everything is bounded in requests and in time.
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
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from hostile_clients import KEY, KINDS, SLOW, attack, run_hostile
from load_servers import MODES, SERVERS, run_server


@contextmanager
def server(mode: str, passages: int, dim: int) -> Iterator[tuple[int, Any]]:
    """Start a server process; yield its port, once it answers, and its process; terminate it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=run_server, args=(mode, port, passages, dim), daemon=True)
    process.start()
    try:
        wait_for(mode, port)
        yield port, process
    finally:
        process.terminate()
        process.join()


def wait_for(mode: str, port: int, seconds: float = 120.0) -> None:
    """Return once the server at ``port`` answers an honest request."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask(http.client.HTTPConnection("127.0.0.1", port, timeout=30), mode, "warm up")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def ask(connection: http.client.HTTPConnection, mode: str, query: str) -> int:
    """Search for one query, or have 16 tokens written; return how often that was put off.

    Raises:
        RuntimeError: the answer is not whole.
    """
    seed = zlib.crc32(query.encode())
    if mode == "policy":
        route, wanted = "/v1/completions", 1
        body = {"model": "policy", "prompt": [5, 6, 7, 8] * 4, "max_tokens": 16, "seed": seed}
        body["min_tokens"] = 16
    elif mode == "agent":
        route, wanted = "/v1/chat/completions", 1
        body = {"model": "research", "messages": [{"role": "user", "content": query}]}
        body |= {"max_tokens": 16}
    else:
        route, wanted, body = "/search", 5, {"query": query, "top_n": 5}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    put_off = 0
    while True:
        connection.request("POST", route, json.dumps(body), headers)
        response = connection.getresponse()
        found = json.loads(response.read())
        if response.status != 429:
            break
        put_off += 1
        time.sleep(float(response.headers["Retry-After"]))
    answers = found.get("choices", []) if isinstance(found, dict) else found
    if response.status != 200 or len(answers) != wanted:
        raise RuntimeError(f"status must be 200 with {wanted} answers, got {response.status}")
    return put_off


def load(
    mode: str,
    port: int,
    clients: int,
    requests: int,
    seconds: float,
    put_off: list[int] | None = None,
) -> tuple[list[float], float]:
    """Return the latency of each request and the wall time of all, both in seconds.

    ``put_off`` is given how often each was told to come again.
    """
    latencies: list[float] = []
    put_off = [] if put_off is None else put_off
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
                put_off.append(ask(connection, mode, f"query {number} of {client}"))
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
    with server(mode, args.passages, args.dim) as (port, _):
        for clients in args.clients:
            count, queries = searches(port)
            latencies, wall = load(mode, port, clients, args.requests, args.seconds)
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


def beside_hostile(mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what honest clients wait alone, beside each kind of hostile clients, and beside all.

    Between two kinds the honest ones are alone again: their latency there is the one to compare.
    """
    rows = []
    spawn = multiprocessing.get_context("spawn")
    with server(mode, args.passages, args.dim) as (port, process):
        load(mode, port, args.honest, 100, args.seconds)
        for kind in [k for k in (*kinds_of(mode), "all") if k in (args.kind or (k,))]:
            alone, _ = load(mode, port, args.honest, args.requests, args.seconds)
            stop = spawn.Event()
            given = (mode, port, kind, args.hostile, args.pause, stop)
            hostile = spawn.Process(target=run_hostile, args=given, daemon=True)
            hostile.start()
            time.sleep(2.0)
            put_off: list[int] = []
            beside, _ = load(mode, port, args.honest, args.requests, args.seconds, put_off)
            stop.set()
            hostile.join()
            row: dict[str, Any] = {"server": mode, "beside": kind, "answers": len(beside)}
            for share in (50, 99):
                row[f"p{share}_alone_ms"] = float(np.percentile(alone, share)) * 1000
                row[f"p{share}_ms"] = float(np.percentile(beside, share)) * 1000
            row |= {"times": row["p99_ms"] / row["p99_alone_ms"], "put_off": sum(put_off)}
            rows.append(row | {"mb": resident(process.pid) / 2**20})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def memory(mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what the server holds after each tenth of many requests, one in ten hostile."""
    kinds = [k for k in kinds_of(mode) if k not in SLOW]
    rows, done = [], 0
    with server(mode, args.passages // 10, args.dim) as (port, process):
        while done < args.many:
            part = args.many // 10
            load(mode, port, args.honest, part - part // 10, 600)
            for number in range(part // 10):
                attack(mode, port, kinds[number % len(kinds)])
            done += part
            rows.append({"server": mode, "requests": done, "mb": resident(process.pid) / 2**20})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def told(mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what each kind of hostile client is answered: status, Retry-After and words."""
    rows = []
    with server(mode, args.passages // 10, args.dim) as (port, _):
        for kind in kinds_of(mode):
            head, _, body = (attack(mode, port, kind) or b"").partition(b"\r\n\r\n")
            status = head.split(b" ")[1].decode() if head else "none"
            later = re.search(rb"retry-after: (\d+)", head, re.IGNORECASE)
            words = re.sub(r"\s+", " ", body.decode("utf-8", "replace"))[:160]
            row = {"server": mode, "kind": kind, "status": status, "words": words}
            rows.append(row | {"retry_after": later[1].decode() if later else None})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def stopping(mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return how long a server takes to end that honest and hostile clients are at."""
    spawn = multiprocessing.get_context("spawn")
    with server(mode, args.passages // 10, args.dim) as (port, process):
        stop = spawn.Event()
        given = (mode, port, "all", args.hostile, args.pause, stop)
        hostile = spawn.Process(target=run_hostile, args=given, daemon=True)
        hostile.start()
        load(mode, port, args.honest, 100, 5.0)
        begun = time.monotonic()
        process.terminate()
        process.join()
        rows = [{"server": mode, "seconds": time.monotonic() - begun, "exit": process.exitcode}]
        stop.set()
        hostile.join()
    print(json.dumps(rows[0]), flush=True)
    return rows


def kinds_of(mode: str) -> list[str]:
    """Return what hostile clients do to a server."""
    return list(KINDS.get(mode, KINDS["retrieval"]))


def resident(process: int) -> int:
    """Return the bytes of main memory that a process holds."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure the parts that are asked for, and print their tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--requests", type=int, default=640, help="for each number of clients")
    parser.add_argument("--seconds", type=float, default=30.0, help="bound of each measurement")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument(
        "--part",
        nargs="+",
        choices=("joining", "hostile", "memory", "told", "stop"),
        default=["joining"],
    )
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--kind", nargs="+", help="of hostile clients in part hostile; all of them")
    parser.add_argument("--honest", type=int, default=4, help="honest clients")
    parser.add_argument("--hostile", type=int, default=8, help="hostile clients")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two attempts")
    parser.add_argument("--many", type=int, default=20_000, help="requests of part memory")
    args = parser.parse_args()
    parts: dict[str, list[dict[str, Any]]] = {}
    print(f"{args.passages} x {args.dim} float32, {os.cpu_count()} cores, one BLAS thread")
    if "joining" in args.part:
        parts["joining"] = [row for mode in MODES for row in measure(mode, args)]
        show_joining(parts["joining"])
    if "hostile" in args.part:
        parts["hostile"] = [r for name in args.server for r in beside_hostile(SERVERS[name], args)]
        show_hostile(parts["hostile"])
    if "memory" in args.part:
        parts["memory"] = [row for name in args.server for row in memory(SERVERS[name], args)]
        print("| server | requests | holds, MB |\n|---|---|---|")
        for row in parts["memory"]:
            print(f"| {row['server']} | {row['requests']:,} | {row['mb']:.0f} |")
    for name, measured in (("told", told), ("stop", stopping)):
        if name in args.part:
            parts[name] = [row for one in args.server for row in measured(SERVERS[one], args)]
    if args.json:
        report = {"machine": platform.platform(), "cores": os.cpu_count(), **parts}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**report, "arguments": vars(args)}, file, indent=2)


def show_hostile(rows: list[dict[str, Any]]) -> None:
    """Print the table of part hostile."""
    print("| server | beside | p50 alone, ms | p50 | p99 alone | p99 | times | put off | MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['server']} | {row['beside']} | {row['p50_alone_ms']:.1f} | {row['p50_ms']:.1f}"
            f" | {row['p99_alone_ms']:.1f} | {row['p99_ms']:.1f} | {row['times']:.1f} "
            f"| {row['put_off']} | {row['mb']:.0f} |"
        )


def show_joining(rows: list[dict[str, Any]]) -> None:
    """Print the table of part joining."""
    print("| server | clients | requests | requests/s | p50 ms | p99 ms | queries a search |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['mode']} | {row['clients']} | {row['requests']} | {row['requests_per_s']:.0f} "
            f"| {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['queries_per_search']:.1f} |"
        )


if __name__ == "__main__":
    main()

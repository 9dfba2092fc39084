"""ReSearch-v0 as an OpenEnv server, and a client that plays the gold chain of a question on it.

pip install "openenv>=0.10,<0.11"
python examples/openenv_play.py --serve             # keeps serving; play it from elsewhere
python examples/openenv_play.py                     # serves and plays in one process
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from openenv.core import GenericEnvClient

from research_rl.envs.adapters.openenv import SPLIT, research_app
from research_rl.envs.synthetic import builtin_world


@contextmanager
def server(**kwargs: Any) -> Iterator[str]:
    """Serve ReSearch-v0 with these arguments on a free port; yield its address."""
    config = uvicorn.Config(research_app(**kwargs), port=0, log_level="warning")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start; its log says why")
        time.sleep(0.05)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join()


def play(url: str, index: int) -> list[Any]:
    """Play a question of the built-in world rightly; return the texts and the last reward."""
    question = builtin_world()[0][index]
    with GenericEnvClient(base_url=url).sync() as env:
        seen: list[Any] = [env.reset(split=SPLIT, index=index).observation["text"]]
        for query in question.metadata["chain"]:
            turn = f"<think> t </think><search> {query} </search>"
            seen.append(env.step({"text": turn}).observation["text"])
        name = seen[-1].split()[-3]
        result = env.step({"text": f"<think> t </think><answer> \\boxed{{{name}}} </answer>"})
        assert result.done
        return [*seen, result.reward]


def tasks(url: str) -> int:
    """Return how many questions the server says it has."""
    answer = httpx.post(f"{url}/research/num_tasks", json={"split": SPLIT})
    return int(answer.raise_for_status().json()["num_tasks"])


def main() -> None:
    """Serve, and play unless told to serve only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    world = {"top_k": 1, "max_searches": 4}
    if args.serve:
        uvicorn.run(research_app(**world), host=args.host, port=args.port)
        return
    with server(**world) as url:
        *seen, reward = play(url, index=0)
    print("".join(seen[1:]).strip())
    print(f"reward {reward}")


if __name__ == "__main__":
    main()

"""Play one question of the built-in world by hand, or watch it played: ``--demo``.

Type a query to search, ``= name`` to answer, nothing (or Ctrl-D) to give up.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator

import gymnasium as gym

from research_rl.envs import ReSearchEnv, paint, shows_colour


def by_hand() -> Iterator[str]:
    """Ask for a query or an answer until the episode is over."""
    while True:
        try:
            line = input("query, or = answer: ").strip()
        except EOFError:
            print()
            line = ""
        if line.startswith("="):
            yield f"<think> I know it. </think><answer> \\boxed{{{line[1:].strip()}}} </answer>"
        elif line:
            yield f"<think> I must look it up. </think><search> {line} </search>"
        else:
            yield "I give up."


def demo(env: ReSearchEnv) -> Iterator[str]:
    """Follow the question's gold chain of queries, then answer with what the last one found."""
    for query in env.episode.question.metadata["chain"]:
        yield f"<think> I need {query}. </think><search> {query} </search>"
    found = env.episode.passages[-1][0].contents.split()[-2]
    yield f"<think> It is {found}. </think><answer> It is \\boxed{{{found}}}. </answer>"


def show(text: str) -> None:
    """Print in colour to a terminal that shows it, plainly to a file or a pipe."""
    print(text if shows_colour(sys.stdout) else re.sub(r"\x1b\[[\d;]*m", "", text))


def main() -> None:
    """Play one episode and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="follow the gold chain of queries")
    parser.add_argument("--seed", type=int, default=0, help="draws the question")
    args = parser.parse_args()
    env = gym.make("ReSearch-v0", top_k=3, render_mode="ansi")
    _, info = env.reset(seed=args.seed)
    base = env.unwrapped
    assert isinstance(base, ReSearchEnv)
    if not args.demo:
        print("Type a query to search, = name to answer, nothing (or Ctrl-D) to give up.")
        print(info["question"])
    for turn in demo(base) if args.demo else by_hand():
        observation, reward, terminated, truncated, info = env.step(turn)
        if terminated or truncated:
            break
        if not args.demo:  # the demo is shown as a whole below
            show(paint("result", observation.strip()))
    if args.demo:
        show(str(env.render()))
    searches = f"{info['num_searches']} search{'' if info['num_searches'] == 1 else 'es'}"
    print(f"reward {reward:.2f}, {searches}, {info['finish_reason']}")
    print(f"right: {' or '.join(base.episode.question.answers)}")


if __name__ == "__main__":
    main()

"""A policy gradient on ``gem.make_vec``: GEM's environments in a loop of one's own.

    pip install gem-llm==0.1.0
    python examples/gem_loop.py

The policy is that of cleanrl_loop.py, no language model: it searches one of the question's
relations, of the person asked about or of the one found last, or answers with the latter.
"""

from __future__ import annotations

import argparse

import gem
import torch
from torch.distributions import Categorical

from research_rl.envs.adapters.gem import ENV_ID

CHOICES = 7


def turn(choice: int, relations: list[str], people: list[str]) -> str:
    """Write the turn that a choice stands for."""
    if choice == CHOICES - 1:
        return f"<think> t </think><answer> \\boxed{{{people[-1]}}} </answer>"
    relation, person = relations[choice // 2 % len(relations)], people[-(choice % 2)]
    return f"<think> t </think><search> the {relation} of {person} </search>"


def train(updates: int, groups: int, size: int, lr: float = 1e-2) -> list[float]:
    """Train on so many groups of rollouts an update; return the mean reward of each update."""
    torch.manual_seed(0)
    count = groups * size
    envs = gem.make_vec([ENV_ID] * count, top_k=1, max_searches=4)
    policy = torch.nn.Sequential(
        torch.nn.Linear(9, 64), torch.nn.Tanh(), torch.nn.Linear(64, CHOICES)
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    history = []
    for update in range(updates):
        # equal seeds ask equal questions: `size` rows in a row are a group
        _, infos = envs.reset(seed=[update * groups + row // size for row in range(count)])
        words = [info["question"].split() for info in infos]
        relations, people = [w[3:-2:3] for w in words], [[w[-2]] for w in words]
        hops = torch.tensor([len(r) for r in relations])
        rewards, logprobs, entropy = torch.zeros(count), torch.zeros(count), torch.zeros(count)
        running = list(range(count))
        while running:
            found = torch.tensor([len(people[row]) - 1 for row in running])
            seen = torch.cat([torch.eye(4)[hops[running]], torch.eye(5)[found]], 1)
            choice = Categorical(logits=policy(seen))
            chosen = choice.sample()
            logprobs = logprobs.index_add(0, torch.tensor(running), choice.log_prob(chosen))
            entropy = entropy.index_add(0, torch.tensor(running), choice.entropy())
            actions = {
                row: turn(pick, relations[row], people[row])
                for row, pick in zip(running, chosen.tolist(), strict=True)
            }
            played = envs.step(actions)  # rows that are over begin anew, and are left alone
            for row, text, reward, ended, cut, _ in zip(running, *played, strict=True):
                rewards[row] += float(reward)
                if not (ended or cut):
                    people[row].append(text.split(" is ")[1].split()[0])
            running = [r for r, e, c in zip(running, *played[2:4], strict=True) if not (e or c)]
        grouped = rewards.view(groups, size)
        above = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-6)
        loss = -(above.flatten() * logprobs + 0.05 * entropy).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(rewards.mean()))
    return history


def main() -> None:
    """Train, and print the reward now and then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--size", type=int, default=16)
    args = parser.parse_args()
    history = train(args.updates, args.groups, args.size)
    for begin in range(0, len(history), 10):
        part = history[begin : begin + 10]
        print(
            f"updates {begin + 1:3d} to {begin + len(part):3d}  reward {sum(part) / len(part):.2f}"
        )


if __name__ == "__main__":
    main()

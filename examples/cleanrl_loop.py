"""A plain policy-gradient loop on ``gym.make_vec("ReSearch-v0")``: it learns whom to ask about.

The policy is no language model: it searches one of the question's relations, of the person asked
about or of the one found last, or answers with the latter. In half a minute on a CPU it learns to
answer one and two hops; three need more exploration than it has.
"""

import gymnasium as gym
import torch
from torch.distributions import Categorical

import research_rl.envs  # noqa: F401  registers ReSearch-v0

GROUPS, SIZE, UPDATES, CHOICES = 32, 16, 150, 7
N = GROUPS * SIZE


def turn(choice: int, relations: list[str], people: list[str]) -> str:
    """Write the turn that a choice stands for."""
    if choice == CHOICES - 1:
        return f"<think> t </think><answer> \\boxed{{{people[-1]}}} </answer>"
    relation, person = relations[choice // 2 % len(relations)], people[-(choice % 2)]
    return f"<think> t </think><search> the {relation} of {person} </search>"


torch.manual_seed(0)
envs = gym.make_vec("ReSearch-v0", N, top_k=1, max_searches=4, autoreset_mode="Disabled")
policy = torch.nn.Sequential(torch.nn.Linear(9, 64), torch.nn.Tanh(), torch.nn.Linear(64, CHOICES))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
for update in range(UPDATES):
    # equal seeds ask equal questions: SIZE rows in a row are a group
    _, infos = envs.reset(seed=[update * GROUPS + row // SIZE for row in range(N)])
    words = [question.split() for question in infos["question"]]
    relations, people = [w[3:-2:3] for w in words], [[w[-2]] for w in words]
    hops = torch.tensor([len(r) for r in relations])
    rewards, logprobs, entropy = torch.zeros(N), torch.zeros(N), torch.zeros(N)
    running = torch.ones(N, dtype=torch.bool)
    while running.any():
        found = torch.tensor([len(p) - 1 for p in people])
        choice = Categorical(logits=policy(torch.cat([torch.eye(4)[hops], torch.eye(5)[found]], 1)))
        chosen = choice.sample()
        logprobs = logprobs + choice.log_prob(chosen) * running
        entropy = entropy + choice.entropy() * running
        turns = map(turn, chosen.tolist(), relations, people)
        actions = [t if r else None for t, r in zip(turns, running, strict=True)]  # None: over
        texts, reward, terminated, truncated, _ = envs.step(actions)
        rewards += torch.as_tensor(reward)
        running = running & ~torch.as_tensor(terminated | truncated)
        for row in running.nonzero().flatten().tolist():
            people[row].append(texts[row].split(" is ")[1].split()[0])
    groups = rewards.view(GROUPS, SIZE)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    loss = -(advantages.flatten() * logprobs + 0.05 * entropy).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if update % 10 == 9:
        by_hops = "  ".join(f"{h}-hop {rewards[hops == h].mean():.2f}" for h in (1, 2, 3))
        print(f"update {update + 1:3d}  reward {rewards.mean():.2f}  {by_hops}")

"""TRL's GRPOTrainer learns in an environment that it only knows as an OpenEnv server.

    pip install -e ".[trl,openenv]"
    python examples/openenv_train.py                     # serves the built-in world, and trains
    python examples/openenv_play.py --serve &            # or from elsewhere
    python examples/openenv_train.py --url http://127.0.0.1:8000 --model runs/quickstart/policy

Questions, prompts, results and rewards come over the web socket, one session a rollout. Token ids
are made here: each text of the environment is encoded once and masked, what was sampled stays as
it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
from datasets import Dataset
from openenv.core import GenericEnvClient
from openenv_play import server
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_rollouts import random_model

from research_rl.agents import Sequence as Tokens
from research_rl.agents.adapters.trl import sampling_params
from research_rl.agents.engines import CachedEngine
from research_rl.agents.policy import LMPolicy
from research_rl.envs.adapters.openenv import SPLIT
from research_rl.envs.protocols import Protocol, get_protocol


class OpenEnvRollouts:
    """A ``rollout_func``: plays the questions of an OpenEnv server by their numbers."""

    def __init__(self, url: str) -> None:
        answer = httpx.post(f"{url}/research/tasks", json={"split": SPLIT})
        tasks = answer.raise_for_status().json()["tasks"]
        self.url = url
        self.numbers = {task["question"]: task["index"] for task in tasks}

    def rows(self) -> list[dict[str, str]]:
        """The rows of the trainer's dataset."""
        return [{"prompt": text} for text in self.numbers]

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Play one episode a prompt; a rollout that runs out of tokens earns nothing."""
        policy = LMPolicy(trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class)
        rewards = [0.0] * len(prompts)
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(GenericEnvClient(base_url=self.url).sync()) for _ in prompts
            ]
            starts = [
                session.reset(split=SPLIT, index=self.numbers[prompt]).observation
                for session, prompt in zip(sessions, prompts, strict=True)
            ]
            protocol = spoken(starts[0]["protocol"])

            def on_stop(stopped: list[tuple[int, Tokens]]) -> list[list[int] | None]:
                replies: list[list[int] | None] = []
                for row, tokens in stopped:
                    found = sessions[row].step({"text": policy.decode(tokens.turn_ids)})
                    rewards[row] += found.reward or 0.0
                    text = found.observation["text"]
                    ids = policy.encode_reply(protocol, text, tokens.turn_ids)
                    replies.append(None if found.done else ids)
                return replies

            place = (trainer.args.seed, trainer.state.global_step)
            seeds = np.random.default_rng(place).integers(1 << 62, size=len(prompts))
            played = CachedEngine(policy).run(
                [policy.encode(start["text"]) for start in starts],
                sampling_params(trainer).speaking(protocol),
                on_stop,
                [int(seed) for seed in seeds],
            )
        return {
            "prompt_ids": [tokens.prompt_ids for tokens in played],
            "completion_ids": [tokens.response_ids for tokens in played],
            "logprobs": [tokens.logprobs for tokens in played],
            "env_mask": [[int(own) for own in tokens.loss_mask] for tokens in played],
            "earned": rewards,
        }


def spoken(name: str) -> Protocol:
    """Return the server's protocol; a prompt that comes as text cannot begin a chat."""
    protocol = get_protocol(name)
    if protocol.keeps_eos:
        raise ValueError(
            "the server must speak a protocol whose replies go on in the same message, got "
            f"{name!r}; serve with protocol=research or search_r1"
        )
    return protocol


def earned(earned: Sequence[float], **_: Any) -> list[float]:
    """What the environment paid."""
    return list(earned)


def make_trainer(url: str, model: Any, tokenizer: Any, args: argparse.Namespace) -> GRPOTrainer:
    """Put the server's questions, model and trainer together."""
    rollouts = OpenEnvRollouts(url)
    tokenizer.padding_side = "left"
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=earned,
        rollout_func=rollouts,
        train_dataset=Dataset.from_list(rollouts.rows()),
        args=GRPOConfig(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            num_generations=args.group,
            max_completion_length=args.tokens,
            learning_rate=args.lr,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=args.cpu,
            bf16=False,
            gradient_checkpointing=False,
        ),
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a server; none serves the built-in world here")
    parser.add_argument("--model", help="a Hugging Face folder or name instead of random weights")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48, help="of a rollout, results included")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", default="runs/openenv")
    parser.add_argument("--gpu", dest="cpu", action="store_false")
    return parser.parse_args(argv)


def main() -> None:
    """Train, and print what was earned at each step."""
    args = parse()
    model, tokenizer = random_model()
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    with ExitStack() as stack:
        world = {"top_k": 1, "max_searches": 4, "prompt": "{prompt}"}
        url = args.url or stack.enter_context(server(**world))
        trainer = make_trainer(url, model, tokenizer, args)
        trainer.train()
    for entry in trainer.state.log_history:
        if "reward" in entry:
            print(f"step {entry['step']}  reward {entry['reward']:.3f}")


if __name__ == "__main__":
    main()

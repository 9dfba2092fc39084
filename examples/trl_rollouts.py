"""TRL's GRPOTrainer on ReSearch-v0, in the tag protocol: token ids in, token ids out.

    pip install -e ".[trl]"
    python examples/trl_rollouts.py                      # a tiny random model, the built-in world
    python examples/trl_rollouts.py --model runs/quickstart/policy --world runs/quickstart/world

``--world`` is a folder with train.jsonl and index, as the quickstart writes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from research_rl.agents.adapters.trl import TRLRollouts, research_reward
from research_rl.envs.questions import read_questions
from research_rl.envs.synthetic import SyntheticWorld, builtin_world
from research_rl.trainers.warmstart import TAGS, WORDS, TinyModelConfig, tiny_model, word_tokenizer


def random_model() -> tuple[Any, Any]:
    """Return a tiny model that knows the words of the built-in world, and its tokenizer."""
    words = word_tokenizer([*TAGS, *WORDS, *SyntheticWorld(num_people=100).vocabulary])
    return tiny_model(words, TinyModelConfig(hidden_size=32, num_layers=1), seed=0), words


def make_trainer(args: argparse.Namespace) -> GRPOTrainer:
    """Put questions, environment, model and trainer together."""
    world: dict[str, Any] = {}
    questions = builtin_world()[0]
    if args.world:
        questions = read_questions(str(Path(args.world) / "train.jsonl"))
        world = {"index": str(Path(args.world) / "index")}
    model, tokenizer = random_model()
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.padding_side = "left"
    env = gym.make_vec(
        "research_rl.envs:ReSearch-v0",
        1,
        top_k=1,
        max_searches=4,
        prompt=args.prompt,
        autoreset_mode="Disabled",
        **world,
    )
    rollouts = TRLRollouts(questions, env)
    config = GRPOConfig(
        output_dir=args.out,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        num_generations=args.group,
        max_completion_length=args.tokens,
        learning_rate=args.lr,
        scale_rewards="group",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=args.cpu,
        bf16=False,
        gradient_checkpointing=False,
    )
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=research_reward,
        rollout_func=rollouts,
        train_dataset=Dataset.from_list(rollouts.rows()),
        args=config,
    )


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Train; return what was logged at each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a Hugging Face folder or name instead of random weights")
    parser.add_argument("--world", help="a folder with train.jsonl and index")
    parser.add_argument("--prompt", default="{prompt}", help="base, instruct or a text")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48, help="of a rollout, results included")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", default="runs/trl")
    parser.add_argument("--gpu", dest="cpu", action="store_false")
    trainer = make_trainer(parser.parse_args(argv))
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    for entry in log:
        print(
            f"step {entry['step']}  reward {entry['reward']:.3f}  "
            f"searches {entry['research/searches']:.2f}  grad norm {entry['grad_norm']:.3g}"
        )
    return log


if __name__ == "__main__":
    main()

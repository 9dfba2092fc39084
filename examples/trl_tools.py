"""TRL's GRPOTrainer with ``search`` as a tool of the model's own chat format.

    pip install -e ".[trl]"
    python examples/trl_tools.py                         # a tiny random model: shows that it runs
    python examples/trl_tools.py --model Qwen/Qwen3-0.6B --gpu --tokens 1024 --steps 100

Any model will do whose chat template TRL knows how to read tool calls from (Qwen 2.5 and 3, Llama
3.1 and others). The tiny one spells its text in bytes and wears Qwen3's template.
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from research_rl.envs.adapters.trl import search_tool_factory, search_tool_reward, tool_rows
from research_rl.envs.synthetic import builtin_world


def random_model() -> tuple[Any, Any]:
    """Return a tiny model with Qwen3's chat template, and its tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(t, special=True) for t in control])
    words = ("<tool_call>", "</tool_call>", "<think>", "</think>", "\\boxed{")
    backend.add_tokens([AddedToken(t, special=False) for t in words])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = qwen3_chat_template
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(shape), tokenizer


def make_trainer(args: argparse.Namespace) -> GRPOTrainer:
    """Put questions, tool, model and trainer together."""
    model, tokenizer = random_model()
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    config = GRPOConfig(
        output_dir=args.out,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        num_generations=args.group,
        max_completion_length=args.tokens,
        max_tool_calling_iterations=4,
        learning_rate=args.lr,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=args.cpu,
        bf16=not args.cpu,
        gradient_checkpointing=not args.cpu,
    )
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        environment_factory=search_tool_factory(top_k=3, max_searches=4),
        reward_funcs=search_tool_reward,
        train_dataset=Dataset.from_list(tool_rows(builtin_world()[0])),
        args=config,
    )


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Train; return what was logged at each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a Hugging Face folder or name instead of random weights")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32, help="of a rollout, results included")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--out", default="runs/trl-tools")
    parser.add_argument("--gpu", dest="cpu", action="store_false")
    trainer = make_trainer(parser.parse_args(argv))
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    for entry in log:
        calls = entry["tools/call_frequency"]
        print(f"step {entry['step']}  reward {entry['reward']:.3f}  tool calls {calls:.2f}")
    return log


if __name__ == "__main__":
    main()

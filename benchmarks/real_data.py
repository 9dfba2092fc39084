"""The whole path on real questions: FAISS index, fit, validate, with a small random model.

No weights are fetched: a Qwen2 of a few million random parameters with a BPE tokenizer trained on
the corpus stands in for the real checkpoint, so rewards are near zero by design. What is shown is
that nothing but names and sizes separates this run from a real one, and what retrieval finds.

    python benchmarks/real_data.py --data FOLDER --out runs/real-data
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SETS = ("hotpotqa", "2wikimultihopqa", "musique")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# as tokens of their own, so that a random model happens to write a search now and then
TAGS = ["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows(path: Path) -> Iterator[dict[str, object]]:
    """Yield the objects of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write(path: Path, items: Iterable[dict[str, object]]) -> int:
    """Write JSONL and return how many lines it has."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, item in enumerate(items, 1):  # noqa: B007
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    return count


def merge(data: Path, out: Path, num_train: int, num_val: int) -> None:
    """Write one corpus of all paragraphs and two question files, ids prefixed by the data set."""
    seen: set[str] = set()

    def corpus() -> Iterator[dict[str, object]]:
        for name in SETS:
            for row in rows(data / f"{name}_corpus.jsonl"):
                if (contents := str(row["contents"])) not in seen:
                    seen.add(contents)
                    yield {"id": f"{name}/{row['id']}", "contents": contents}

    def questions(split: str, limit: int) -> Iterator[dict[str, object]]:
        for name in SETS:
            taken = 0
            for row in rows(data / f"{name}_questions.jsonl"):
                metadata = row["metadata"]
                assert isinstance(metadata, dict)
                if metadata["split"] == split and taken < limit:
                    taken += 1
                    yield {**row, "id": f"{name}/{row['id']}"}

    print("corpus", write(out / "corpus.jsonl", corpus()), "paragraphs")
    print("train ", write(out / "train.jsonl", questions("train", num_train)), "questions")
    print("val   ", write(out / "val.jsonl", questions("dev", num_val)), "questions")


def random_checkpoint(folder: Path, corpus: Path, vocab_size: int = 768) -> None:
    """Save a random Qwen2 with a byte-level BPE tokenizer trained on the corpus."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = (str(row["contents"]) for i, row in enumerate(rows(corpus)) if i < 4000)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.add_tokens(TAGS)
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(*words: str | Path) -> None:
    """Print a command, run it, and stop here if it fails."""
    command = [str(w) for w in words]
    print("\n$", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "research_rl.trainers.cli", *command[1:]], check=True)


def recall(data: Path, out: Path, k: int = 5) -> None:
    """Print recall@k of the supporting paragraphs for each data set, the question as the query."""
    from research_rl.envs.retrieval import load_retriever

    retriever = load_retriever(str(out / "index"))
    contents = {
        f"{name}/{row['id']}": str(row["contents"])
        for name in SETS
        for row in rows(data / f"{name}_corpus.jsonl")
    }
    print(f"\n| data set | questions | recall@{k} of supporting paragraphs |\n|---|---|---|")
    for name in SETS:
        questions = list(rows(data / f"{name}_questions.jsonl"))
        found = retriever.search([str(q["question"]) for q in questions], k)
        scores = []
        for question, passages in zip(questions, found, strict=True):
            metadata = question["metadata"]
            assert isinstance(metadata, dict)
            gold = {contents[f"{name}/{i}"] for i in metadata["gold_ids"]}
            scores.append(len(gold & {p.contents for p in passages}) / len(gold))
        print(f"| {name} | {len(scores)} | {100 * sum(scores) / len(scores):.1f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of FlashRAG JSONL files")
    parser.add_argument("--out", type=Path, default=Path("runs/real-data"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--config", default="research_7b", help="research_7b or ..._instruct")
    args = parser.parse_args()
    if not (args.data / "hotpotqa_corpus.jsonl").is_file():
        sys.exit(f"--data must hold hotpotqa_corpus.jsonl and its siblings, got {args.data}")
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    merge(args.data, out, num_train=16, num_val=12)
    random_checkpoint(out / "model", out / "corpus.jsonl")
    if not (out / "index").is_dir():
        corpus, index = out / "corpus.jsonl", out / "index"
        run("research", "index", "build", "--corpus", corpus, "--out", index, "--kind", "dense")
    recall(args.data, out)
    common = [
        *("--config", args.config),
        f"--model.policy.model={out / 'model'}",
        "--model.policy.dtype=float32",
        f"--model.env.index={out / 'index'}",
        f"--data.train={out / 'train.jsonl'}",
        f"--data.val={out / 'val.jsonl'}",
        "--data.batch_size=4",
        "--model.sampling.max_response_tokens=256",
        "--model.validation_sampling.max_response_tokens=256",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.devices=1",
        "--trainer.strategy=auto",
        f"--trainer.default_root_dir={out / 'run'}",
    ]
    run("research", "fit", *common, f"--trainer.max_steps={args.steps}")
    run("research", "validate", *common, "--ckpt_path=last")


if __name__ == "__main__":
    main()

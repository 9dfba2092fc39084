"""What each family of causal language models that transformers ships can do here.

A tiny model with random weights of every family is made, in float32 and in bfloat16. Tried are the
packed learner (else rollouts are learned padded), the cached engine, the turnwise one (else every
prefix is read again), and a few sampled tokens. A family of which no tiny model can be made is
named with the reason. A line of JSON is kept for each family, so a run that was stopped goes on.

    python benchmarks/families.py [--out families.jsonl] [--only llama mamba] [--page PAGE]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched: shapes and weights are made here

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from research_rl.agents.engines import CachedEngine, ReferenceEngine, TurnwiseEngine
from research_rl.agents.engines.cache_forward import CacheForward
from research_rl.agents.kernels import PackedForward
from research_rl.agents.policy import LMPolicy, evaluating
from research_rl.agents.proofs import prove_packed, prove_padded
from research_rl.agents.types import SamplingParams, Sequence
from research_rl.trainers.warmstart.tiny_model import word_tokenizer

DTYPES = ("float32", "bfloat16")
SECONDS = 600
"""That a family may take; one that hangs is named so."""
LARGEST = 30_000_000
"""Weights of a model that still counts as tiny."""
WORDS = [f"w{i}" for i in range(300)]
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "max_sequence_length": 512,
    "n_positions": 512,
    "initializer_range": 0.2,
    "n_inner": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "rotary_dim": 4,
    "d_model": 32,
    "d_inner": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "decoder_layers": 2,
    "decoder_ffn_dim": 64,
    "decoder_attention_heads": 4,
    "encoder_layers": 2,
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "emb_dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 64,
    "chunk_size": 16,
    "n_groups": 1,
    "lru_width": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 16,
    "attention_window_size": 16,
    "num_nextn_predict_layers": 0,
    "num_kv_shared_layers": 0,
}
"""For each field that a config may have, a small value."""
SPECIAL: dict[str, dict[str, Any]] = {
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "nemotron_h": {"layer_types": ["mamba", "attention", "moe"], "num_hidden_layers": 3},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"]},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
        "hybrid_layer_ids": [2],
    },
    "zaya": {"num_experts_per_tok": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "xlnet": {"d_head": 8},
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2},
}
"""Fields that a family needs besides."""


def families() -> dict[str, str]:
    """Each model type of transformers that has a causal language model, with its class."""
    named = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return {name: cls if isinstance(cls, str) else cls[0] for name, cls in sorted(named.items())}


def tiny_config(family: str) -> Any:
    """A config of a family with small numbers wherever it has one."""
    usual = AutoConfig.for_model(family)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

    fields = small(usual) | ends | SPECIAL.get(family, {})
    for inner in ("text_config", "vision_config", "audio_config", "decoder"):
        part = getattr(usual, inner, None)
        if part is not None:
            fields[inner] = small(part) | ends
            if model_type := getattr(part, "model_type", None):
                fields[inner]["model_type"] = model_type
                fields[inner] |= SPECIAL.get(model_type, {})
    if "num_decoder_layers" in fields:
        fields.pop("num_hidden_layers", None)
    if hasattr(usual, "is_decoder"):
        fields["is_decoder"] = True
    return AutoConfig.for_model(family, **fields)


def small(usual: Any) -> dict[str, Any]:
    """Small values of those fields that a config has."""
    found = {}
    for name, value in SMALL.items():
        own = getattr(type(usual), name, None)
        settable = not isinstance(own, property) or own.fset is not None
        try:
            known = getattr(usual, name, None) is not None
        except RuntimeError:  # it differs from layer to layer, and is left as it is
            continue
        if settable and (known or (name == "head_dim" and hasattr(usual, name))):
            found[name] = value
    if found.get("kv_lora_rank"):  # latent attention has a key head for each query head
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found


def tiny_policy(family: str, dtype: str) -> LMPolicy:
    """A random model of a family.

    Raises:
        ValueError: it cannot be made small.
    """
    config = tiny_config(family)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    size = sum(p.numel() for p in empty.parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million weights are left where all is made small")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    return LMPolicy(model, word_tokenizer(WORDS)).eval()


def tried(family: str, dtype: str) -> dict[str, str]:
    """What learns and samples a family in a dtype, and why not something quicker."""
    policy = tiny_policy(family, dtype)
    stock = policy.model(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
    if not bool(stock.isfinite().all()):
        raise ValueError("its logits are not finite with random weights")
    found = {"learner": "packed", "engine": "cached"}
    with evaluating(policy.model):
        found |= learned(policy)
    engine: Any = CachedEngine(policy)
    try:
        engine.check()
    except NotImplementedError as error:
        found |= {"engine": "turn by turn", "why_not_cached": one_line(error)}
        engine = TurnwiseEngine(policy)
        try:
            with evaluating(policy.model):
                CacheForward(policy.model).check()
        except NotImplementedError as refused:
            found |= {"engine": "read again", "why_not_turnwise": one_line(refused)}
            engine = ReferenceEngine(policy)
    sampled = engine.run([[3, 4, 5], [6, 7]], SamplingParams(6, stop=()), never, [0, 1])
    if not all(math.isfinite(x) for one in sampled for x in one.logprobs):
        raise ValueError("its sampled log-probs are not finite")
    return found


def learned(policy: LMPolicy) -> dict[str, str]:
    """How rollouts of a policy are learned from, and why not in a quicker way."""
    forward = PackedForward(policy.model)
    try:
        prove_packed(forward)
    except (NotImplementedError, TypeError, AttributeError) as error:
        found = {"learner": "padded", "why_padded": one_line(error)}
    else:
        return {"learner": "packed"}
    try:
        prove_padded(forward.model)
    except NotImplementedError as error:
        found |= {"learner": "one by one", "why_alone": one_line(error)}
    return found


def never(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
    """Nothing is appended: a sequence is over where its turn ends."""
    return [None for _ in stopped]


def one_line(error: BaseException) -> str:
    """The message of an error, on a line of its own length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def work(family: str, pipe: Any) -> None:
    """Send the row of a family; runs in a process of its own, which a model may take down."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    row: dict[str, Any] = {}
    for dtype in DTYPES:
        try:
            row[dtype] = tried(family, dtype)
        except Exception as error:  # whatever a family's code does with tiny numbers
            row[dtype] = {"skipped": f"{type(error).__name__}: {one_line(error)}"}
    pipe.send(row)


def row_of(family: str) -> dict[str, Any]:
    """What a process of its own finds out about a family."""
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(family, theirs))
    process.start()
    theirs.close()
    try:
        row = ours.recv() if ours.poll(SECONDS) else {"skipped": f"no answer in {SECONDS} s"}
    except EOFError:
        process.join()
        row = {"skipped": f"its process ended with status {process.exitcode}"}
    if process.is_alive():
        process.kill()
    process.join()
    if "skipped" in row:
        row = dict.fromkeys(DTYPES, row)
    return {"family": family, "class": families()[family], **row}


def page(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a page of tables."""
    rows = list(rows)
    lines = [
        "# Families of models",
        "",
        "What `python benchmarks/families.py --page docs/families.md` found out about tiny models",
        "with random weights of every family of causal language models in transformers",
        f"{transformers.__version__} (torch {torch.__version__.partition('+')[0]}, on a CPU). This "
        "page is made by that command.",
        "It says what was tried, not what a real model of the family scores.",
        "",
        "- **packed**: rollouts are learned as one flat row, a group's prompt once; **padded**:",
        "  row by row, which costs more and gives the same gradient ([learner.md](learner.md));",
        "  **one by one**: rows that are padded together change each other, so that",
        "  `updates.micro_batch_size: 1` is asked for.",
        "- **cached**: `CachedEngine` samples; **turn by turn**: `TurnwiseEngine`, with a model's",
        "  own cache; **read again**: `TurnwiseEngine` too, which reads everything again for each",
        "  token, because the model's cache is not to be trusted ([engine.md](engine.md)).",
        "",
        "| family | learner, float32 | engine, float32 | learner, bfloat16 | engine, bfloat16 |",
        "|---|---|---|---|---|",
    ]
    made = [row for row in rows if any("skipped" not in row[d] for d in DTYPES)]
    for row in made:
        cells = [row[d].get(what, "not tried") for d in DTYPES for what in ("learner", "engine")]
        lines.append(f"| {row['family']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{len(made)} of {len(rows)} families.",
        *doubtful(made),
        "",
        "## Why not packed, why not cached",
        "",
    ]
    for what, title in (
        ("why_padded", "learned padded"),
        ("why_alone", "one by one"),
        ("why_not_cached", "not cached"),
        ("why_not_turnwise", "read again"),
    ):
        lines += [f"| {title} | float32 | bfloat16, where it is another reason |", "|---|---|---|"]
        for row in made:
            first, second = (escaped(row[d].get(what, "")) for d in DTYPES)
            if first or second:
                other = "" if second.split("differ")[0] == first.split("differ")[0] else second
                lines.append(f"| {row['family']} | {first} | {other} |")
        lines.append("")
    lines += ["## Not tried", "", "| family | reason |", "|---|---|"]
    for row in rows:
        reasons = [row[d]["skipped"] for d in DTYPES if "skipped" in row[d]]
        if reasons:
            part = "" if len(reasons) == len(DTYPES) else "in one dtype: "
            lines.append(f"| {row['family']} | {part}{escaped(reasons[0])} |")
    return "\n".join(lines) + "\n"


def doubtful(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Lines about families that bfloat16 accepts where float32, which rounds less, refuses them."""
    quicker = {"learner": "packed", "engine": "cached"}
    names = [
        row["family"]
        for row in rows
        if all("skipped" not in row[d] for d in DTYPES)
        and any(row["float32"][w] != q and row["bfloat16"][w] == q for w, q in quicker.items())
    ]
    if not names:
        return []
    return [
        "",
        "Accepted in bfloat16 and refused in float32, because a check in bfloat16 allows for",
        f"rounding; take float32's word for these: {', '.join(names)}.",
    ]


def escaped(text: str) -> str:
    """A text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def main() -> None:
    """Try the families that are not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("families.jsonl"), help="rows of JSON")
    parser.add_argument("--only", nargs="*", help="these families alone")
    parser.add_argument("--page", type=Path, help="also write the page")
    args = parser.parse_args()
    held = args.out.read_text(encoding="utf-8").splitlines() if args.out.is_file() else []
    rows = {row["family"]: row for row in map(json.loads, held)}
    for family in args.only or families():
        if family in rows:
            continue
        rows[family] = row_of(family)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[family]) + "\n")
        short = {d: {k: v for k, v in rows[family][d].items() if "why" not in k} for d in DTYPES}
        print(family, short, flush=True)
    if args.page:
        args.page.write_text(page(rows[name] for name in sorted(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()

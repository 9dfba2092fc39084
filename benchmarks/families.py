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
from tiny_families import families, tiny_policy

from research_rl.agents.engines import CachedEngine, ReferenceEngine, TurnwiseEngine
from research_rl.agents.engines.cache_forward import CacheForward
from research_rl.agents.kernels import PackedForward
from research_rl.agents.policy import LMPolicy, evaluating
from research_rl.agents.proofs import prove_packed, prove_padded
from research_rl.agents.types import SamplingParams, Sequence

DTYPES = ("float32", "bfloat16")
SECONDS = 600
"""That a family may take; one that hangs is named so."""
HEAD = """# Families of models

Is my model supported, and does it learn and sample in the quick way? Look up its family here: the
`model_type` in its `config.json`. If you only want to know which engine to set, go to
[The rollout engine](engine.md#which-engine-fits).

```bash
research fit --config quickstart                                  # "cached", the default
research fit --config quickstart --model.engine TurnwiseEngine    # "turn by turn", "read again"
research fit --config quickstart --model.updates.micro_batch_size 1    # "one by one"
```

Tried were tiny models with random weights of every family of causal language models in transformers
{transformers} (torch {torch}, on a CPU). The page says what was tried, not what a real model of the
family scores. It is made by this command:

    python benchmarks/families.py --page docs/families.md

## What the words mean

A *rollout* is one attempt of the model at one question. The rollouts of a question are a *group*
and share a prompt.

The columns *learner* say how the model learns from rollouts ([learner.md](learner.md)):

- **packed**: as one flat row without padding, a group's prompt once.
- **padded**: row by row. It costs more and gives the same gradient.
- **one by one**: rows that are padded together change each other, so that
  `updates.micro_batch_size: 1` is asked for.

The columns *engine* say how it samples ([engine.md](engine.md)):

- **cached**: by `CachedEngine`.
- **turn by turn**: by `TurnwiseEngine`, with the model's own cache.
- **read again**: by `TurnwiseEngine` too. It reads everything again for each token, because the
  model's cache is not to be trusted.

## The families
"""
"""Where the page begins; then come the tables."""
WHY = """## Why not packed, why not cached

Why does my model learn or sample in a slower way? Each cell is the message of the check that it did
not pass. Where the bfloat16 cell is empty, the check gave the same reason in both dtypes, or the
family passed it in bfloat16, or was not tried in it.
"""
NOT_TRIED = """## Not tried

Why is my family not in the tables? No tiny model of these could be made or run with random weights,
in both dtypes or, where the reason says so, in one. It says nothing of a real one. Those that are
in the first table were tried in the other dtype.

| family | reason |
|---|---|"""


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
    torch_version = torch.__version__.partition("+")[0]
    lines = [
        HEAD.format(transformers=transformers.__version__, torch=torch_version),
        "| family | learner, float32 | engine, float32 | learner, bfloat16 | engine, bfloat16 |",
        "|---|---|---|---|---|",
    ]
    made = [row for row in rows if any("skipped" not in row[d] for d in DTYPES)]
    for row in made:
        cells = [row[d].get(what, "not tried") for d in DTYPES for what in ("learner", "engine")]
        lines.append(f"| {row['family']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{len(made)} of {len(rows)} families were tried, in one dtype at least.",
        *doubtful(made),
        "",
        WHY,
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
    lines.append(NOT_TRIED)
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
        "Some were accepted in bfloat16 and refused in float32, because a check in bfloat16 allows",
        f"for rounding. Take float32's word for these: {', '.join(names)}.",
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

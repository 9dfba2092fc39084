"""What log-probs over a large vocabulary cost: CPU time and memory, forward and backward.

Four ways to get the policy gradient of GRPO from hidden states (N, D) and an output head (V, D):
all logits at once, TRL's chunked kernel, Liger's chunked GRPO loss, and ours, in one pass and with
the logits computed again. Ways whose library is missing are left out. Each way runs in a process of
its own; the rounds are interleaved and each figure is the median. Extra memory is the highest
resident size during the call less that before it, the gradients included.

    python benchmarks/lm_head.py --json runs/lm_head.json    # 2048 x 896 x 151,936: some minutes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from research_rl.agents.kernels.lm_head import LMHead

SHARE = 0.4
"""Of the positions, in the second case: what a policy writes when it reads search results."""
Way = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> None:
    """All logits in float32, as a plain training loop has them."""
    logp = (hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    _surrogate(logp, advantages).backward()  # type: ignore[no-untyped-call]


def trl_chunked(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> None:
    """What GRPOTrainer puts into a model's head."""
    from trl.kernels import ChunkedLogProbFunction

    found = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, 8192, None, 1.0, ("entropy",)
    )
    _surrogate(found[0], advantages).backward()  # type: ignore[no-untyped-call]


def liger(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> None:
    """Liger's fused GRPO loss, uncompiled; a row is a rollout of one token."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, chunk_size=256)
    mask = torch.ones_like(targets[:, None])
    loss(hidden[:, None], weight, targets[:, None], mask, advantages)[0].backward()


def recomputed(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> None:
    """Ours for a loss over whole rollouts: the logits of a chunk are computed twice."""
    logp, _ = LMHead(weight).logprobs(hidden, targets, entropy=True)
    _surrogate(logp, advantages).backward()  # type: ignore[no-untyped-call]


def one_pass(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> None:
    """Ours for a loss that is a sum over tokens."""
    LMHead(weight).loss(
        hidden, targets, lambda part, logp, *_: _surrogate(logp, advantages[part])
    ).backward()  # type: ignore[no-untyped-call]


WAYS: dict[str, Way] = {
    "full logits": full_logits,
    "TRL, chunked": trl_chunked,
    "Liger": liger,
    "ours, recomputed": recomputed,
    "ours, one pass": one_pass,
}


def _surrogate(logp: Tensor, advantages: Tensor) -> Tensor:
    return -((logp - logp.detach()).exp() * advantages).sum()


@contextmanager
def peak_memory(found: list[float]) -> Iterator[None]:
    """Append the growth of the resident size inside, in MB, sampled every 2 ms."""
    before, stop, peak = _resident(), threading.Event(), [0.0]

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], _resident() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        found.append(max(peak[0], _resident() - before))


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(name: str, size: tuple[int, int, int], share: float, dtype: torch.dtype) -> list[float]:
    """CPU seconds and MB of one call, and the norm of the head's gradient, to compare ways by."""
    positions, width, vocab = size
    torch.manual_seed(0)
    weight = (torch.randn(vocab, width) * 0.02).to(dtype).requires_grad_()
    hidden = torch.randn(positions, width).to(dtype).requires_grad_()
    targets, advantages = torch.randint(vocab, (positions,)), torch.randn(positions)
    some = torch.arange(positions)
    if share < 1.0:
        written = torch.rand(positions) < share
        if name.startswith("ours"):  # the others compute every position and weigh it with 0
            some = written.nonzero()[:, 0]
        advantages = advantages * written
    memory: list[float] = []
    with peak_memory(memory):
        start = time.process_time()
        WAYS[name](hidden[some], weight, targets[some], advantages[some])
        seconds = time.process_time() - start
    assert weight.grad is not None
    return [seconds, memory[0], float(weight.grad.float().norm())]


def _in_a_process(name: str, options: argparse.Namespace, share: float) -> list[float] | None:
    command = [sys.executable, __file__, "--way", name, "--share", str(share)]
    command += ["--dtype", options.dtype, "--size", *map(str, options.size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians of all ways in both cases."""
    found: dict[tuple[str, float], list[list[float]]] = {}
    for _ in range(options.rounds):
        for share in (1.0, SHARE):
            for name in WAYS:
                figures = _in_a_process(name, options, share)
                if figures is not None:
                    found.setdefault((name, share), []).append(figures)
    rows = []
    for (name, share), rounds in found.items():
        seconds, extra, norm = (statistics.median(values) for values in zip(*rounds, strict=True))
        rows.append({"way": name, "share": share, "cpu_s": seconds, "mb": extra, "norm": norm})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown; ratios are to TRL in the same case, where it is there."""
    base = {row["share"]: row["cpu_s"] for row in rows if row["way"].startswith("TRL")}
    lines = ["| way | positions with loss | CPU s | to TRL | extra MB | gradient norm |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (-row["share"], -row["cpu_s"])):
        ratio = row["cpu_s"] / base[row["share"]] if row["share"] in base else None
        shown = "" if ratio is None else f"{ratio:.2f}"
        lines.append(
            f"| {row['way']} | {row['share']:.0%} | {row['cpu_s']:.1f} | {shown} | {row['mb']:.0f} "
            f"| {row['norm']:.4g} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=3, default=[2048, 896, 151_936], metavar="N")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.way:
        size = (options.size[0], options.size[1], options.size[2])
        print(json.dumps(measure(options.way, size, options.share, getattr(torch, options.dtype))))
        return
    rows = run(options)
    print(table(rows))
    if options.json:
        settings = {"size": options.size, "dtype": options.dtype, "machine": platform.processor()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**settings, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

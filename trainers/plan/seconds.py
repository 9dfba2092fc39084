"""The time of an iteration by arithmetic: products against the peak, decoding against bandwidth.

A GPU's speed stands in a table. A processor's is measured for a moment, with products of the
model's own shapes in the dtypes that the run computes in: there bfloat16 may be twice as fast as
float32, or twenty times slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research_rl.trainers.plan.sizes import Sizes

TRAIN_SHARE, DECODE_SHARE = 0.45, 0.5
"""Of a GPU's peak and bandwidth that a good run reaches (a target, not a measurement)."""
CPU_SHARE = 0.8
"""Of the products that were measured, what a pass over rollouts reaches on a processor."""
_ROWS = 256
"""Tokens of a product of the learner, as measured."""
_WIDEST = 2048
"""Of a product that is measured: larger ones run as fast, and take longer to measure."""
_PASSES = 6
"""Times that sampling goes through float32 logits."""

PROMPT_TOKENS, SAMPLED_SHARE = 400, 0.4
"""What is assumed where nothing is said: a prompt's length, and the share of a response that the
policy writes, the rest being search results."""


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Args:
        name: as on the command line.
        memory: bytes.
        flops: of matrix products a second, multiply and add counted as two; in bf16 on a GPU, on a
            processor in the dtype of the learner.
        bandwidth: bytes a second.
        decode_flops: of the products of a decode step, the reading of the weights included; None on
            a GPU, where the bandwidth tells.
        learn_flops: of products with their backward pass, which some processors are far slower at;
            None is as quick as without.
        said: how the numbers were measured, "" where they stand in the table.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    decode_flops: float | None = None
    learn_flops: float | None = None
    said: str = ""


DEVICES = {
    "a100": Device("a100", 80 * 10**9, 312e12, 2.0e12),
    "h100": Device("h100", 80 * 10**9, 790e12, 3.35e12),
    "h200": Device("h200", 141 * 10**9, 790e12, 4.3e12),
    "b200": Device("b200", 180 * 10**9, 2250e12, 8.0e12),
}
"""The H200's speed was measured; the H100's compute is taken to be the same; else data sheets."""


def this_cpu(memory: int, sizes: Sizes, threads: int | None = None) -> Device:
    """Return this machine's processor, measured for a moment with products of a model's shapes.

    Args:
        memory: of it, in bytes.
        sizes: the model's shape, and the dtypes of learner and sampler.
        threads: that the run will have; None are those that torch takes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        learner, sampler = sizes.compute or sizes.dtype, sizes.samples_in
        rows = min(sizes.slots, sizes.rollouts)
        flops = _products(sizes, _ROWS, learner)
        learn = _products(sizes, _ROWS, learner, backward=True)
        decode = _products(sizes, rows, sampler)
        block = torch.zeros(1 << 23)
        bandwidth = 8 * block.numel() / _best(block.clone)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    said = (
        f"measured now with {used} thread{'s' * (used > 1)}: {flops / 1e9:.0f} GFLOP/s in "
        f"{learner} products of {_ROWS} tokens, {learn / 1e9:.0f} with their backward pass, "
        f"{decode / 1e9:.0f} in {sampler} ones of {rows}, {bandwidth / 1e9:.1f} GB/s of memory"
    )
    return Device("cpu", memory, flops, bandwidth, decode, learn, said)


def _products(sizes: Sizes, rows: int, dtype: str, backward: bool = False) -> float:
    """Operations a second of a layer's largest product, weights read anew each time."""
    import torch
    import torch.nn.functional as F

    kind = getattr(torch, dtype)
    wide, deep = min(sizes.intermediate, _WIDEST), min(sizes.hidden, _WIDEST)
    number = 2 if rows == _ROWS else 8
    weights = [torch.zeros(wide, deep, dtype=kind, requires_grad=backward) for _ in range(number)]
    tokens = torch.zeros(rows, deep, dtype=kind, requires_grad=backward)
    gradient = torch.zeros(rows, wide, dtype=kind)

    def products() -> None:
        for weight in weights:
            made = F.linear(tokens, weight)
            if backward:
                made.backward(gradient)  # type: ignore[no-untyped-call]

    times = 3 if backward else 1  # the gradients of tokens and weights are products, too
    return times * number * 2 * rows * wide * deep / _best(products)


def _best(work: Callable[[], object], least: float = 0.1) -> float:
    """The shortest of several times, in seconds: what else the machine does only adds to it."""
    work()
    end, best = time.perf_counter() + least, float("inf")
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def phase_seconds(sizes: Sizes, device: Device) -> dict[str, float]:
    """Return the seconds of each phase of one iteration on one rank, searches not counted."""
    if device.decode_flops is not None:
        return _cpu_seconds(sizes, device, device.decode_flops)
    rollouts, context = sizes.rollouts, sizes.prompt + sizes.mean_response / 2
    prompts = max(1, rollouts // sizes.group) * sizes.prompt
    sampled = rollouts * sizes.mean_response * sizes.sampled
    given = rollouts * sizes.mean_response * (1 - sizes.sampled)
    speed = device.flops * TRAIN_SHARE
    slots = min(sizes.slots, rollouts)
    steps = sampled / slots
    keys = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * sizes.samples
    bytes_a_step = sizes.weights * sizes.samples + slots * context * keys
    learned = prompts + sizes.learned * (sampled + given)
    passes = 8 if sizes.checkpointing else 6
    if sizes.lora:
        passes -= 2  # frozen weights have no gradient of their own
    found = {
        "prefill": 2 * sizes.weights * (prompts + given) / speed,
        "decode": max(
            steps * bytes_a_step / (device.bandwidth * DECODE_SHARE),
            2 * sizes.weights * sampled / speed,
        ),
        "update": sizes.epochs * passes * sizes.weights * learned / speed,
    }
    if sizes.has_reference:
        found["reference"] = 2 * sizes.weights * learned / speed
    return found


def _cpu_seconds(sizes: Sizes, device: Device, decode_flops: float) -> dict[str, float]:
    """The same on a processor, where nothing overlaps: times are added up.

    A token goes through the layers, but only one that the policy writes through the output head.
    """
    rollouts, context = sizes.rollouts, sizes.prompt + sizes.mean_response / 2
    prompts = max(1, rollouts // sizes.group) * sizes.prompt
    sampled = rollouts * sizes.mean_response * sizes.sampled
    tokens = prompts + rollouts * sizes.mean_response
    layers, speed = sizes.weights - sizes.head, device.flops * CPU_SHARE
    learn = device.learn_flops or device.flops
    learned, written = prompts + sizes.learned * (tokens - prompts), sizes.learned * sampled
    forward = 2 * (layers * learned + sizes.head * written)
    backward = 2 * forward - 2 * sizes.head * written * (not sizes.head_trains)
    if sizes.lora:
        backward -= 2 * layers * learned
    if sizes.checkpointing:
        backward += 2 * layers * learned
    keys = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * sizes.samples * context
    logits = _PASSES * 4 * sizes.vocabulary
    found = {
        "prefill": 2 * layers * (tokens - sampled) / speed,
        "decode": sampled
        * (2 * sizes.weights / decode_flops + (keys + logits) / (device.bandwidth * DECODE_SHARE)),
        "update": sizes.epochs * (forward + backward) / (learn * CPU_SHARE),
    }
    if sizes.has_reference:
        found["reference"] = forward / speed
    return found

"""The seconds of an iteration, computed from operations and bytes; nothing is run.

Learning is limited by a device's operations a second, and decoding by the bytes that it reads a
second, since each token reads all weights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research_rl.trainers.plan.sizes import Sizes

TRAIN_SHARE, DECODE_SHARE = 0.45, 0.5
"""Of the peak and of the bandwidth that a good run reaches (a target, not a measurement)."""

PROMPT_TOKENS, SAMPLED_SHARE = 400, 0.4
"""What is assumed where nothing is said: a prompt's length, and the share of a response that the
policy writes, the rest being search results."""


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Args:
        name: as on the command line.
        memory: bytes.
        flops: matrix products a second in bf16, multiply and add counted as two.
        bandwidth: bytes a second.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float


DEVICES = {
    "a100": Device("a100", 80 * 10**9, 312e12, 2.0e12),
    "h100": Device("h100", 80 * 10**9, 790e12, 3.35e12),
    "h200": Device("h200", 141 * 10**9, 790e12, 4.3e12),
    "b200": Device("b200", 180 * 10**9, 2250e12, 8.0e12),
}
"""The H200's speed was measured; the H100's compute is taken to be the same; else data sheets."""


def this_cpu(memory: int) -> Device:
    """Return this machine's processor, measured for a moment with the threads that torch has."""
    import torch

    a = torch.randn(384, 384)
    a @ a
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 0.1:
        a @ a
        rounds += 1
    flops = rounds * 2 * 384**3 / (time.perf_counter() - start)
    block = torch.zeros(1 << 24)
    start = time.perf_counter()
    block.clone()
    bandwidth = 8 * block.numel() / (time.perf_counter() - start)
    return Device("cpu", memory, flops, bandwidth)


def phase_seconds(sizes: Sizes, device: Device) -> dict[str, float]:
    """Return the seconds of each phase of one iteration on one rank, searches not counted."""
    rollouts, context = sizes.rollouts, sizes.prompt + sizes.mean_response / 2
    prompts = max(1, rollouts // sizes.group) * sizes.prompt
    sampled = rollouts * sizes.mean_response * sizes.sampled
    given = rollouts * sizes.mean_response * (1 - sizes.sampled)
    speed = device.flops * TRAIN_SHARE
    slots = min(sizes.slots, rollouts)
    steps = sampled / slots
    keys = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * sizes.samples
    bytes_a_step = sizes.weights * sizes.samples + slots * context * keys
    tokens = prompts + sampled + given
    passes = 8 if sizes.checkpointing else 6
    if sizes.lora:
        passes -= 2  # frozen weights have no gradient of their own
    found = {
        "prefill": 2 * sizes.weights * (prompts + given) / speed,
        "decode": max(
            steps * bytes_a_step / (device.bandwidth * DECODE_SHARE),
            2 * sizes.weights * sampled / speed,
        ),
        "update": sizes.epochs * passes * sizes.weights * tokens / speed,
    }
    if sizes.has_reference:
        found["reference"] = 2 * sizes.weights * tokens / speed
    return found

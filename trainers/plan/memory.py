"""The memory of a configuration on one device: bytes of each part, and options that lower the peak.

Training in float32 with AdamW holds each weight four times: itself, its gradient and two states.
Activations are counted as the layers of Llama and Qwen save them: norms, attention over packed
rollouts, gated feed-forward; the output head keeps one chunk of logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from research_rl.agents.engines import prefill_tokens
from research_rl.agents.kernels import CHUNK_BYTES, GPU_BLOCKS, piece_size
from research_rl.agents.policy import LoraConfig
from research_rl.trainers.plan.sizes import Sizes, with_lora

_FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part.

    Args:
        held: there all the time.
        rollout: besides, while rollouts are sampled.
        update: besides, while the policy learns.
    """

    held: dict[str, int]
    rollout: dict[str, int]
    update: dict[str, int]

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of each phase at its peak."""
        held = sum(self.held.values())
        return {
            "rollout": held + sum(self.rollout.values()),
            "update": held + sum(self.update.values()),
        }

    @property
    def peak(self) -> int:
        """Bytes of the larger phase."""
        return max(self.phases.values())


def memory_of(sizes: Sizes, on_cpu: bool = False) -> Memory:
    """Return what a configuration takes on one device."""
    share = sizes.ranks if sizes.sharded else 1
    held = {"weights": sizes.weights * sizes.width // share}
    learns: dict[str, int] = {}
    if sizes.has_reference and not sizes.lora:
        held["reference"] = sizes.weights * _reference_width(sizes) // share
    if sizes.compute in ("bfloat16", "float16") and not sizes.sharded:
        held["working copies"] = sizes.weights * sizes.computes
    state = sizes.state_bytes or sizes.width
    states = int(sizes.trainable * sizes.states * state) // share
    if sizes.parked and not on_cpu:
        learns["optimizer states"] = states
    else:
        held["optimizer states"] = states
    learns["gradients"] = sizes.trainable * sizes.width // share
    if sizes.ranks > 1 and not sizes.sharded:
        held["gradient buckets (DDP)"] = sizes.trainable * sizes.width
    learns |= _pass(sizes, on_cpu)
    return Memory(held, _rollout(sizes, on_cpu), learns)


def _reference_width(sizes: Sizes) -> int:
    return sizes.width if sizes.sharded or sizes.compute is None else sizes.computes


def _rollout(sizes: Sizes, on_cpu: bool) -> dict[str, int]:
    parts = {}
    if sizes.sharded:
        parts["sampling copy (unsharded)"] = sizes.weights * sizes.samples
    elif sizes.sampling is not None and (sizes.sampling != sizes.dtype or sizes.lora):
        parts["sampling copy"] = sizes.weights * sizes.samples
    slots = min(sizes.slots, sizes.rollouts)
    longest = sizes.prompt + sizes.response
    layer = 2 * (slots + 1) * longest * sizes.kv_heads * sizes.head_dim * sizes.samples
    parts["KV cache"] = layer * sizes.layers
    parts["logits"] = slots * sizes.vocabulary * (sizes.samples + 3 * _FLOAT)
    limit = sizes.prefill or prefill_tokens("cpu" if on_cpu else "cuda")
    read = min(max(limit, sizes.prompt), slots * max(sizes.prompt, 256))
    parts["prefill"] = read * (6 * sizes.hidden + 3 * sizes.intermediate) * sizes.samples
    return parts


def _pass(sizes: Sizes, on_cpu: bool) -> dict[str, int]:
    """A forward and backward pass over one portion of the rollouts."""
    tokens = portion(sizes)
    layer = layer_activations(sizes, tokens)
    kept = layer * sizes.layers
    if sizes.checkpointing:
        kept = tokens * sizes.hidden * sizes.computes * sizes.layers + layer
    parts = {"activations": kept + 6 * tokens * sizes.hidden * sizes.computes}
    predicted = min(tokens, max(1, int(tokens * sizes.sampled)) * 2)
    chunk = min(CHUNK_BYTES, predicted * sizes.vocabulary * sizes.computes)
    blocks = 0 if on_cpu else 3 * chunk * _FLOAT // sizes.computes // GPU_BLOCKS
    gradient = 4 * sizes.head if sizes.head_trains else 0
    parts["output head"] = chunk + blocks + gradient
    if sizes.sharded:  # two layers are gathered at a time
        of_layer = (sizes.weights - 2 * sizes.head) // sizes.layers
        parts["gathered weights"] = 2 * (2 * of_layer + sizes.head) * sizes.computes
    return parts


def portion(sizes: Sizes) -> int:
    """Tokens of the largest forward and backward pass."""
    whole = sizes.rollouts * sizes.response + max(1, sizes.rollouts // sizes.group) * sizes.prompt
    longest = sizes.prompt + sizes.response
    return min(whole, max(sizes.micro_tokens or whole, longest))


def layer_activations(sizes: Sizes, tokens: int) -> int:
    """Bytes that one layer saves for its backward pass."""
    keys = sizes.kv_heads * sizes.head_dim
    queries = sizes.heads * sizes.head_dim
    piece = piece_size(sizes.response)
    seen = sizes.prompt + min(sizes.response, tokens) / 2 + piece / 2
    gathered = max(1.0, seen / min(piece, max(1, sizes.response)))
    norms = 4 * sizes.hidden  # two norms: what is normed and what comes out
    gate = 2  # what it is made of; it is computed again
    if sizes.lora or sizes.checkpointing or sizes.sharded:  # the model's own modules run
        gate = 4
        if sizes.computes < 4:
            norms += 4 * sizes.hidden  # they work in float32
    inner = gate * sizes.intermediate
    numbers = 2 * sizes.hidden + norms + 3 * queries + 2 * gathered * keys + inner
    return int(tokens * numbers * sizes.computes)


@dataclass(frozen=True)
class Remedy:
    """An option that lowers the peak.

    Args:
        option: what to write.
        peak: bytes that are left then.
        fits: whether that is little enough.
    """

    option: str
    peak: int
    fits: bool


def smaller_iterations(sizes: Sizes) -> list[tuple[str, Sizes]]:
    """Return options that make an iteration smaller by half, each with the sizes it leads to."""
    found = []
    half = sizes.response // 2
    if half >= 1:
        shorter = replace(sizes, response=half, mean_response=max(1, sizes.mean_response // 2))
        found.append((f"model.sampling.max_response_tokens: {half}", shorter))
    if (fewer := sizes.questions // 2) >= sizes.ranks:
        found.append((f"data.batch_size: {fewer}", replace(sizes, questions=fewer)))
    if (group := sizes.group // 2) >= 2:
        found.append((f"model.updates.group_size: {group}", replace(sizes, group=group)))
    return found


def remedies(sizes: Sizes, room: int, on_cpu: bool = False) -> list[Remedy]:
    """Return what would lower the peak, what fits first, cheapest change first.

    Shorter responses and fewer rollouts come before options that change what is computed.
    """
    tried = smaller_iterations(sizes)
    if not sizes.checkpointing:
        tried.append(
            ("model.policy.gradient_checkpointing: true", replace(sizes, checkpointing=True))
        )
    half = max(portion(sizes) // 2, sizes.prompt + sizes.response)
    if half < portion(sizes):
        tried.append(
            (f"model.updates.micro_batch_tokens: {half}", replace(sizes, micro_tokens=half))
        )
    if sizes.slots > 32 and sizes.rollouts > 32:
        tried.append(("model.engine.init_args.max_slots: 32", replace(sizes, slots=32)))
    if not sizes.lora:
        lora = f"model.policy.lora.r: {LoraConfig.r}, model.policy.dtype: bfloat16"
        adapted = with_lora(sizes)
        small = replace(adapted, slots=min(sizes.slots, 32), checkpointing=True)
        tried += [(lora, adapted), (f"{lora}, gradient_checkpointing, max_slots: 32", small)]
    if sizes.states and sizes.state_bytes is None and not sizes.lora:
        small = replace(sizes, state_bytes=1.0)
        parked = replace(sizes, parked=True)
        eight = "model.optimizer: bitsandbytes.optim.AdamW8bit"
        tried += [(eight, small), ("model.updates.park_optimizer: true", parked)]
        both = replace(small, checkpointing=True, slots=min(sizes.slots, 32), parked=True)
        tried.append(
            (f"{eight}, park_optimizer, gradient_checkpointing and max_slots: 32 together", both)
        )
    for ranks in (2, 4, 8, 16, 32, 64):
        spread = replace(sizes, ranks=ranks, sharded=True)
        if ranks > sizes.ranks or not sizes.sharded:
            tried.append((f"--config strategy/fsdp2 on {ranks} devices", spread))
            if memory_of(spread, on_cpu).peak <= room:
                break
    now = memory_of(sizes, on_cpu).peak
    found = [
        Remedy(option, peak, peak <= room)
        for option, other in tried
        if (peak := memory_of(other, on_cpu).peak) < now
    ]
    return sorted(found, key=lambda remedy: not remedy.fits)

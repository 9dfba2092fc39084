"""The numbers that a plan starts from: a model's shape and the settings that cost memory or time.

They come from the parsed config of ``research fit``. The shape of ``Qwen/Qwen2.5-7B``, for
instance, is built in, so that nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig, Qwen2Config

from research_rl.agents import fast_dtype
from research_rl.agents.engines import MAX_SLOTS
from research_rl.agents.kernels import text_config
from research_rl.agents.policy import LoraConfig, PolicyConfig, empty_model
from research_rl.envs.system import TrustError, code_of
from research_rl.trainers.algorithms import Algorithm
from research_rl.trainers.plan.seconds import PROMPT_TOKENS, SAMPLED_SHARE
from research_rl.trainers.settings import OneLineParser, Updates
from research_rl.trainers.warmstart import TinyModelConfig, tiny_shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied: the published config.json
_QWEN25 = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
}
_WARM_START_WORDS = 640
"""About as many words as a built-in world has; its tokenizer is made by the first run."""


@dataclass(frozen=True)
class Sizes:
    """All that the memory and the time of an iteration depend on.

    Args:
        weights: of the model, adapters included.
        trainable: of those.
        head: weights of the output head.
        head_trains: whether it has a gradient.
        tensor: weights of the largest tensor that is trained.
        hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary: the model's shape.
        dtype: of the weights.
        compute: dtype that the learner works in where it is another one, else None.
        sampling: dtype that the engine samples in where it says so, else None.
        lora: whether adapters are trained.
        has_reference: whether the loss compares with the starting point.
        checkpointing: activations are computed again in the backward pass.
        states: optimizer states of each trainable weight, in its own dtype.
        state_bytes: bytes of one of them where the optimizer compresses, else None.
        parked: optimizer states are in main memory while rollouts are sampled.
        questions: of an iteration, over all ranks.
        group: rollouts of each question.
        learned: share of them that is learned from.
        epochs: passes over the rollouts of an iteration.
        slots: sequences that decode together, at most.
        micro_tokens: of a forward and backward pass.
        prefill: tokens of prompts and results that are read together; None is the engine's choice.
        prompt: tokens of a prompt.
        response: tokens of the longest response, results included.
        mean_response: of a response, for the time.
        sampled: share of a response that the policy writes.
        index: bytes of the search index in main memory; None is not known.
        ranks: processes that train, one device each.
        sharded: whether they share the model out (FSDP2) or hold copies.
    """

    weights: int
    trainable: int
    head: int
    head_trains: bool
    tensor: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    dtype: str
    compute: str | None = None
    sampling: str | None = None
    lora: bool = False
    has_reference: bool = True
    checkpointing: bool = False
    states: int = 2
    state_bytes: float | None = None
    parked: bool = False
    questions: int = 16
    group: int = Updates.group_size
    learned: float = 1.0
    epochs: int = Updates.num_epochs
    slots: int = MAX_SLOTS
    micro_tokens: int | None = Updates.micro_batch_tokens
    prefill: int | None = None
    prompt: int = PROMPT_TOKENS
    response: int = 512
    mean_response: int = 512
    sampled: float = SAMPLED_SHARE
    index: int | None = 0
    ranks: int = 1
    sharded: bool = False

    @property
    def rollouts(self) -> int:
        """Rollouts of one rank in an iteration."""
        return max(1, self.questions * self.group // self.ranks)

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return BYTES[self.dtype]

    @property
    def computes(self) -> int:
        """Bytes of a number that the learner computes."""
        return BYTES[self.compute or self.dtype]

    @property
    def samples_in(self) -> str:
        """Dtype that the engine computes in."""
        own = self.compute if self.sharded and self.compute else self.dtype
        return self.sampling or own

    @property
    def samples(self) -> int:
        """Bytes of a number that the engine computes."""
        return BYTES[self.samples_in]


def with_lora(sizes: Sizes, rank: int = LoraConfig.r) -> Sizes:
    """Return the sizes with bf16 weights and adapters on the linear layers of each layer."""
    kv, q = sizes.kv_heads * sizes.head_dim, sizes.heads * sizes.head_dim
    d, wide = sizes.hidden, sizes.intermediate
    pairs = [(d, q), (d, kv), (d, kv), (q, d), (d, wide), (d, wide), (wide, d)]
    added = sizes.layers * rank * sum(a + b for a, b in pairs)
    base = sizes.weights if not sizes.lora else sizes.weights - sizes.trainable
    return replace(
        sizes,
        weights=base + added,
        trainable=added,
        head_trains=False,
        tensor=rank * max(max(pair) for pair in pairs),
        dtype="bfloat16",
        compute=None,
        lora=True,
    )


def shape_of(policy: Mapping[str, Any], trainer: Mapping[str, Any]) -> Any:
    """Return the model's config: from its folder, this machine's cache, or the built-in list.

    Raises:
        FileNotFoundError: it is in none of the three.
        TrustError: it brings code, and nobody has granted that it is run.
    """
    name = str(policy["model"])
    try:
        with code_of(name, bool(policy.get("trust_remote_code"))) as code:
            return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=code)
    except TrustError:
        raise
    except (OSError, ValueError) as error:
        if (warm := _warm_start(name, trainer)) is not None:
            return warm
        size = name.removeprefix("Qwen/Qwen2.5-").split("-")[0]
        if not name.startswith("Qwen/Qwen2.5-") or size not in _QWEN25:
            known = ", ".join(f"Qwen/Qwen2.5-{size}" for size in _QWEN25)
            raise FileNotFoundError(
                f"model.policy.model must be a folder with a config.json, a model that was "
                f"downloaded before, or one of {known}, got {name!r}; a plan downloads nothing: "
                f"fetch its config.json into a folder and name that"
            ) from error
        return qwen25(size)


def qwen25(size: str) -> Qwen2Config:
    """Return the shape of Qwen2.5 in one of its published sizes, 7B for instance."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = _QWEN25[size]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )


def _warm_start(name: str, trainer: Mapping[str, Any]) -> LlamaConfig | None:
    """The shape that a WarmStart callback will make in the folder ``name``."""
    for callback in trainer.get("callbacks") or ():
        settings = callback.get("init_args") or {}
        if "WarmStart" in callback.get("class_path", "") and settings.get("folder") == name:
            tiny = (settings.get("config") or {}).get("model") or {}
            return tiny_shape(TinyModelConfig(**tiny), _WARM_START_WORDS)
    return None


def counted(policy: PolicyConfig, shape: Any) -> Sizes:
    """Return the sizes of a model, counted on one that has no weights."""
    model: Any = empty_model(policy, shape)
    named = list(model.parameters())
    trained = [p.numel() for p in named if p.requires_grad]
    head = model.get_output_embeddings().weight
    text = text_config(shape)
    hidden = text.hidden_size
    heads = getattr(text, "num_attention_heads", None) or 1  # Mamba has none
    wide = getattr(text, "intermediate_size", None) or 4 * hidden  # GPT-2 names none
    return Sizes(
        weights=sum(p.numel() for p in named),
        trainable=sum(trained),
        head=head.numel(),
        head_trains=head.requires_grad,
        tensor=max(trained, default=0),
        hidden=hidden,
        intermediate=max(wide) if isinstance(wide, list | tuple) else wide,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        vocabulary=head.shape[0],
        dtype=str(head.dtype).removeprefix("torch."),
        lora=policy.lora is not None,
        checkpointing=policy.gradient_checkpointing,
    )


def sizes_of(config: Mapping[str, Any], ranks: int, on_cpu: bool = False) -> Sizes:
    """Return the sizes of a parsed config of ``research fit``.

    Args:
        config: of the run.
        ranks: processes that train together.
        on_cpu: whether this machine's processor is planned for; it decides what ``dtype: auto`` is.

    Raises:
        FileNotFoundError: the shape of its model is not known here.
    """
    model, trainer = config["model"], config["trainer"]
    section = dict(model["policy"])
    shape = shape_of(section, trainer)
    policy = PolicyConfig.from_section({**section, "compile": None})
    updates, sampling = model["updates"], model["sampling"]
    engine = _arguments(model.get("engine"))
    precision = trainer.get("precision")
    quickest = quickest_dtype(on_cpu)
    mixed = "bfloat16" if precision == "bf16-mixed" else None
    compute = updates.get("compute_dtype") or mixed
    compute = quickest if compute == "auto" else compute
    base = counted(policy, shape)
    response = int(sampling["max_response_tokens"])
    states, state_bytes = _states(model.get("optimizer"))
    return replace(
        base,
        compute=compute if compute != base.dtype else None,
        sampling=quickest if engine.get("dtype") == "auto" else engine.get("dtype"),
        has_reference=algorithm_of(model["algorithm"]).needs_reference,
        states=states,
        state_bytes=state_bytes,
        parked=bool(updates.get("park_optimizer")),
        questions=int(config["data"].get("batch_size") or 1),
        group=int(updates["group_size"]),
        learned=int(updates.get("downsample_to") or updates["group_size"])
        / int(updates["group_size"]),
        epochs=int(updates["num_epochs"]),
        slots=int(engine.get("max_slots", MAX_SLOTS)),
        micro_tokens=updates.get("micro_batch_tokens"),
        prefill=engine.get("max_prefill_tokens"),
        response=response,
        mean_response=response,
        index=_index_bytes(model["env"].get("index")),
        ranks=ranks,
        sharded="Sharded" in str(trainer.get("strategy"))
        or "ModelParallel" in str(trainer.get("strategy")),
    )


def quickest_dtype(on_cpu: bool) -> str:
    """Return what ``dtype: auto`` is: on a CPU as the processor can, on a GPU bfloat16."""
    dtype = fast_dtype(torch.device("cpu")) if on_cpu else torch.bfloat16
    return str(dtype).removeprefix("torch.")


def algorithm_of(section: Any) -> Algorithm:
    """Return the learning rule that a parsed config names, made as the run makes it."""
    parser = OneLineParser(prog="research plan")
    parser.add_subclass_arguments(Algorithm, "algorithm", required=True)
    made = parser.instantiate(parser.parse_object({"algorithm": section}))
    algorithm: Algorithm = made["algorithm"]
    return algorithm


def _arguments(chosen: Any) -> dict[str, Any]:
    return dict(chosen.get("init_args") or {}) if isinstance(chosen, Mapping) else {}


def _states(optimizer: Any) -> tuple[int, float | None]:
    """States of a weight that an optimizer keeps, and bytes of each if it compresses them."""
    name = str(optimizer.get("class_path", "AdamW") if isinstance(optimizer, Mapping) else "AdamW")
    name = name.rpartition(".")[2].lower()
    if "sgd" in name:
        return (1 if _arguments(optimizer).get("momentum") else 0), None
    if "adafactor" in name:
        return 0, None
    return (1 if "lion" in name else 2), (1.0 if "8bit" in name else None)


def _index_bytes(index: Any) -> int | None:
    if not isinstance(index, str):
        return 0
    folder = Path(index)
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

"""How a policy is configured and loaded: any Hugging Face causal LM, optionally with LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass
class LoraConfig:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685); the rest of the model is frozen.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input; 0 keeps sampled and recomputed log-probs equal.
        target_modules: names of the layers that get an adapter; None means every linear layer
            but the output head.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] | None = None


@dataclass
class PolicyConfig:
    """Which language model is the policy.

    Args:
        model: a Hugging Face id, or a folder written by save_pretrained.
        tokenizer: the same for the tokenizer; None means the model's.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights; "auto" keeps what the checkpoint has.
        attn_implementation: eager, sdpa, flash_attention_2, ...; None lets transformers choose.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        freeze_embeddings: input embeddings and output head are not trained.
        lora: train low-rank adapters only; needs `research-rl[lora]`.
        trust_remote_code: run code that comes with the model.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Dtype = "float32"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    freeze_embeddings: bool = False
    lora: LoraConfig | None = None
    trust_remote_code: bool = False


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the configuration names.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    name = config.tokenizer or config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _missing("tokenizer", name, error) from error
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(config: PolicyConfig) -> PreTrainedModel:
    """Return the model that the configuration names, adapters attached, in training mode.

    Raises:
        FileNotFoundError: there is none of this name.
        ModuleNotFoundError: LoRA is asked for and peft is not installed.
        ValueError: the dtype or the attention implementation is unknown.
    """
    kwargs: dict[str, Any] = {"dtype": _dtype(config.dtype)}
    if config.attn_implementation is not None:
        kwargs["attn_implementation"] = config.attn_implementation
    model: Any
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.model,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            **kwargs,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "attn_implementation" in str(error):
            raise  # names the known ones
        raise _missing("model", config.model, error) from error
    if config.freeze_embeddings:
        _freeze_embeddings(model)
    if config.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.lora is not None:
        model = _with_adapter(model, config.lora)
    model.train()
    return cast(PreTrainedModel, model)


def _dtype(name: str) -> torch.dtype | str:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return name
    if name not in known:
        raise ValueError(f"dtype must be auto, {', '.join(known)}, got {name!r}; choose one")
    return known[name]


def _missing(what: str, name: str, error: Exception) -> FileNotFoundError:
    if Path(name).is_dir():
        remedy = "the folder is there, but does not load; write it with save_pretrained"
    else:
        remedy = "no such folder here, and the Hub did not give it; check the name or download it"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FileNotFoundError(
        f"{what} must be a Hugging Face id or a folder with a saved {what}, got {name!r}; "
        f"{remedy} ({reason})"
    )


def _freeze_embeddings(model: Any) -> None:
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(module, nn.Module):
            module.requires_grad_(False)


def _with_adapter(model: Any, lora: LoraConfig) -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LoRA must have peft, which is not installed; pip install 'research-rl[lora]'"
        ) from error
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
    )
    return peft.get_peft_model(model, settings)

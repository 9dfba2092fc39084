"""Loading of a policy: any Hugging Face causal language model, with LoRA if wanted."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from research_rl.agents.kernels import PACKED, SLOTS, unsplit_modules
from research_rl.agents.policy.chat import ChatTemplateConfig
from research_rl.agents.policy.dropout import switch_off_dropout
from research_rl.envs.system import LOADING, TrustError, code_of

log = logging.getLogger(__name__)
WeightDtype = Literal["float32", "bfloat16", "float16", "auto"]


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
        freeze_layers: how many layers, from the input on, are not trained. With
            ``freeze_embeddings`` no backward pass goes through them, which saves time and memory.
        lora: train low-rank adapters only; needs the extra ``lora``.
        trust_remote_code: run code that comes with the model; so does ``--trust``.
        compile: backend of torch.compile for the layers while learning, inductor for instance;
            None does not compile. Attention over packed rollouts stays outside.
        chat_template: how chat messages become a prompt; by default as the tokenizer says.
        dropout: keep the base model's dropout and router noise while learning; the learner is then
            another policy than the sampler. That of an adapter is a setting of ``lora``.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    dtype: WeightDtype = "float32"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    freeze_embeddings: bool = False
    freeze_layers: int = 0
    lora: LoraConfig | None = None
    trust_remote_code: bool = False
    compile: str | None = None
    chat_template: ChatTemplateConfig = field(default_factory=ChatTemplateConfig)
    dropout: bool = False

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> PolicyConfig:
        """Return the configuration that a YAML section says, such as a run's ``model.policy``."""
        lora, chat = section.get("lora"), section.get("chat_template")
        made = {
            "lora": LoraConfig(**lora) if lora else None,
            "chat_template": ChatTemplateConfig(**(chat or {})),
        }
        return cls(**{**section, **made})


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the configuration names.

    Raises:
        FileNotFoundError: there is none of this name, or no chat template of its own.
        TrustError: it brings code, and nobody has granted that it is run.
        ValueError: the settings of the chat template are wrong.
    """
    name = config.tokenizer or config.model
    try:
        with code_of(name, config.trust_remote_code) as code:
            tokenizer = AutoTokenizer.from_pretrained(
                name, revision=config.revision, trust_remote_code=code
            )
    except TrustError:
        raise
    except (OSError, ValueError) as error:
        raise _missing("tokenizer", name, error) from error
    config.chat_template.apply(tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(config: PolicyConfig) -> PreTrainedModel:
    """Return the model that the configuration names, adapters attached, in training mode.

    Raises:
        FileNotFoundError: there is none of this name.
        TrustError: it brings code, and nobody has granted that it is run.
        ModuleNotFoundError: LoRA is asked for and peft is not installed.
        ValueError: the dtype or the attention implementation is unknown.
    """
    kwargs: dict[str, Any] = {"dtype": _dtype(config.dtype)}
    if config.attn_implementation is not None:
        kwargs["attn_implementation"] = config.attn_implementation
    model: Any
    try:
        with LOADING, code_of(config.model, config.trust_remote_code) as code:
            model = AutoModelForCausalLM.from_pretrained(
                config.model, revision=config.revision, trust_remote_code=code, **kwargs
            )
    except TrustError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "attn_implementation" in str(error):
            raise ValueError(str(error)) from error  # names the known ones
        raise _missing("model", config.model, error) from error
    return _prepared(model, config)


def load_shape(config: PolicyConfig) -> Any:
    """Return the model's own config, of transformers; no weights are read.

    Raises:
        FileNotFoundError: there is no model of this name.
        TrustError: it brings code, and nobody has granted that it is run.
    """
    try:
        with code_of(config.model, config.trust_remote_code) as code:
            return AutoConfig.from_pretrained(
                config.model, revision=config.revision, trust_remote_code=code
            )
    except TrustError:
        raise
    except (OSError, ValueError) as error:
        raise _missing("model", config.model, error) from error


def empty_model(config: PolicyConfig, shape: Any = None) -> PreTrainedModel:
    """Return the model without its weights, on the meta device: it takes no memory.

    Otherwise it is as load_model returns it: adapters attached, in training mode.

    Args:
        config: as for load_model.
        shape: the model's own config; None reads it.
    """
    shape = load_shape(config) if shape is None else shape
    dtype = _dtype(config.dtype)
    if dtype == "auto":
        dtype = getattr(shape, "dtype", None) or torch.float32
    kwargs: dict[str, Any] = {"dtype": dtype}
    if config.attn_implementation is not None:
        kwargs["attn_implementation"] = config.attn_implementation
    maker: Any = AutoModelForCausalLM
    try:
        with LOADING, torch.device("meta"), code_of(config.model, config.trust_remote_code) as code:
            model = maker.from_config(shape, trust_remote_code=code, **kwargs)
            return _prepared(model, config)
    except ValueError as error:
        if "attn_implementation" not in str(error):
            raise
        raise ValueError(str(error)) from error


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a transformers model says must not be split, in order.

    Raises:
        NotImplementedError: it names none.
    """
    names = unsplit_modules(model)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise NotImplementedError(
            f"the model must name its layers in _no_split_modules, got {type(model).__name__} "
            "without; train it with strategy ddp and model.policy.compile null"
        )
    return layers


def _prepared(model: Any, config: PolicyConfig) -> PreTrainedModel:
    if not config.dropout:
        switch_off_dropout(model)
    if config.freeze_embeddings:
        _freeze_embeddings(model)
    if config.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.lora is not None:
        model = _with_adapter(model, config.lora)
    if config.freeze_layers:
        _freeze_layers(model, config.freeze_layers)
    model.train()
    if config.compile is not None:
        _compile(model, config.compile)
    return cast(PreTrainedModel, model)


def _compile(model: nn.Module, backend: str) -> None:
    """Compile each layer in its place, so that names and copies of weights stay as they are.

    Raises:
        ValueError: there is no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"compile must be null, {', '.join(known)}, got {backend!r}; choose one")
    compiler = os.environ.get("CXX") or "g++"
    on_cpu = not torch.cuda.is_available()
    if backend == "inductor" and on_cpu and not (shutil.which(compiler) or shutil.which("clang++")):
        log.warning("not compiled: inductor must have a C++ compiler on a CPU, found no g++")
        return
    dynamo: Any = torch.compiler
    for name in (PACKED, SLOTS):  # what a flat batch looks like changes with each
        AttentionInterface.register(name, dynamo.disable(ALL_ATTENTION_FUNCTIONS[name]))
    for layer in decoder_layers(model):
        layer.compile(backend=backend, dynamic=True)


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


def _freeze_layers(model: nn.Module, number: int) -> None:
    """Keep the first layers as they are, with the adapters in them.

    Raises:
        ValueError: the model has not more layers than that.
    """
    layers = decoder_layers(model)
    if not 0 < number < len(layers):
        raise ValueError(
            f"freeze_layers must be 0 or more and below the model's {len(layers)} layers, got "
            f"{number}"
        )
    for layer in layers[:number]:
        layer.requires_grad_(False)


def _with_adapter(model: Any, lora: LoraConfig) -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LoRA must have peft, which is not installed; pip install -e '.[lora]'"
        ) from error
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
    )
    return peft.get_peft_model(model, settings)

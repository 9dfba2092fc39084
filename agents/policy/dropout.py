"""Dropout and router noise of a base model, switched off for reinforcement learning.

What samples has no dropout; with it the learner is another policy from the first step on: with the
0.1 of GPT-2 the KL of the untouched policy to its own reference was .30 nats a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

from research_rl.agents.policy.notice import notice

_LOADED = "_dropout_as_loaded"
"""An attribute of the model: what its configs said of dropout, for whoever saves it."""
_NOISE = ("drop", "jitter")


def switch_off_dropout(model: nn.Module) -> None:
    """Let the model compute in training what it computes in evaluation; say once what was on.

    Args:
        model: of transformers, before adapters are attached: theirs is the user's choice.
    """
    found: dict[str, float] = {}
    for module in model.modules():
        if hasattr(module, "router_jitter_noise"):
            # Phi-MoE's router reads it in evaluation too, and draws experts in training
            object.__setattr__(module, "train", MethodType(_stay_in_evaluation, module.eval()))
            continue
        if isinstance(module, _DropoutNd) and module.p > 0:
            found["nn.Dropout"], module.p = max(found.get("nn.Dropout", 0.0), module.p), 0.0
        for name, value in vars(module).items():
            if _is_noise(name, value):
                found[name] = max(found.get(name, 0.0), value)
                setattr(module, name, 0.0)
    said: list[tuple[PreTrainedConfig, str, float]] = []
    for config in _configs(getattr(model, "config", None)):
        said += [(config, n, v) for n, v in vars(config).items() if _is_noise(n, v)]
    for config, name, _ in said:
        setattr(config, name, 0.0)
    setattr(model, _LOADED, said)
    if found:
        what = ", ".join(f"{name} {value:g}" for name, value in sorted(found.items()))
        notice(
            f"dropout of the base model is off ({what}): what samples has none, so the learner "
            "would be another policy; policy.dropout: true keeps it"
        )


@contextmanager
def dropout_as_loaded(model: nn.Module) -> Iterator[None]:
    """Inside, the model's config says of dropout what it said on disk; for saving."""
    said: list[tuple[Any, str, float]] = getattr(model, _LOADED, [])
    try:
        for config, name, value in said:
            setattr(config, name, value)
        yield
    finally:
        for config, name, _ in said:
            setattr(config, name, 0.0)


def _is_noise(name: str, value: object) -> bool:
    """Whether this is a probability of dropout or a width of noise that is on."""
    return isinstance(value, float) and 0 < value <= 1 and any(part in name for part in _NOISE)


def _configs(config: Any) -> Iterator[PreTrainedConfig]:
    """A config and those inside it."""
    if isinstance(config, PreTrainedConfig):
        yield config
        for inner in vars(config).values():
            yield from _configs(inner)


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)

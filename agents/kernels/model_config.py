"""The language model's part of a transformers config, wherever the config keeps it.

A multimodal wrapper keeps the sizes of its language model one level down: Gemma 3 with images has
its context length in ``config.text_config``, and nothing of the kind beside that.
"""

from __future__ import annotations

from typing import Any


def text_config(config: Any) -> Any:
    """Return the part of a config that describes the language model; of most models the whole."""
    return config.get_text_config(decoder=True)


_MULTIPLIED = ("logit_scale", "lm_head_multiplier")  # Cohere, Falcon-H1
_DIVIDED = ("logits_scaling", "logits_mup_width_multiplier")  # Granite and MiniCPM3, Inkling


def logit_scale(config: Any) -> float:
    """Return what a model multiplies the logits of its output head by, before any soft cap.

    >>> from transformers import GraniteConfig
    >>> logit_scale(GraniteConfig(logits_scaling=8.0))
    0.125
    """
    text = text_config(config)
    if text.model_type == "hyperclovax":  # the one that multiplies by a field of this name
        return float(text.logits_scaling)
    scale = 1.0
    for name in _MULTIPLIED:
        scale *= _number(text, name)
    for name in _DIVIDED:
        scale /= _number(text, name)
    return scale


def _number(config: Any, name: str) -> float:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and value else 1.0

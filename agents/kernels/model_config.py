"""What a transformers config says about the language model in it, wherever it says it.

A multimodal wrapper keeps the sizes of its language model one level down: Gemma 3 with images has
its context length in ``config.text_config``, and nothing of the kind beside that.
"""

from __future__ import annotations

from typing import Any


def text_config(config: Any) -> Any:
    """Return the part of a config that describes the language model; of most models the whole."""
    return config.get_text_config(decoder=True)

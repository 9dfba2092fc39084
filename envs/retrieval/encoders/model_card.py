"""Settings that a model states of itself, in the layout of sentence-transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_CONTENT = (
    *("*.safetensors", "pytorch_model*.bin"),
    *("tokenizer.json", "vocab.*", "merges.txt", "*.model"),
)
_PIECES, _PIECE = 64, 1 << 20
_PROMPTS = {"query": "query_prefix", "passage": "passage_prefix", "document": "passage_prefix"}


def read_layout(
    model: str, revision: str | None = None, pooling: str | None = None
) -> dict[str, Any]:
    """Return pooling, normalisation, length and prefixes, as far as the model states them.

    Reads ``modules.json`` and what it names; empty for a model without one, or a name that cannot
    be looked up just now.

    Args:
        model: a folder, or a name on the Hub.
        revision: branch, tag or commit on the Hub.
        pooling: what to do in place of what the model states.

    Raises:
        ValueError: the model needs a step that is not made here (a Dense layer, another pooling).
    """
    modules = _read(model, "modules.json", revision)
    if not isinstance(modules, list):
        return {}
    found: dict[str, Any] = {"normalize": False}
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            config = _read(model, f"{module['path']}/config.json", revision) or {}
            found["pooling"] = pooling or _pooling(model, config)
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer":
            raise ValueError(
                f"encoder {model} must be made of Transformer, Pooling and Normalize, got a step "
                f"{kind}; export its vectors and use research index adopt"
            )
    length = (_read(model, "sentence_bert_config.json", revision) or {}).get("max_seq_length")
    if isinstance(length, int):
        found["max_length"] = length
    prompts = (_read(model, "config_sentence_transformers.json", revision) or {}).get("prompts")
    for name, text in (prompts or {}).items():
        if name in _PROMPTS and text:
            found[_PROMPTS[name]] = text
    return found


def commit_of(model: str) -> str | None:
    """Return the commit of a model of the Hub that would be loaded now; None for a folder."""
    parts = Path(_find(model, "config.json", None) or "").parts
    if Path(model).is_dir() or "snapshots" not in parts:
        return None
    return parts[parts.index("snapshots") + 1]


def digest_of(folders: Sequence[Path]) -> str | None:
    """Return a SHA-256 of the weights and the vocabulary in model folders, None without folders.

    Of a file above 64 MB only its size and 64 pieces of 1 MB are read: training changes every
    tensor, so some piece differs. Configurations are left out, because another version writes the
    same ones differently; what they decide is part of the encoder's settings.
    """
    if not folders:
        return None
    digest = hashlib.sha256()
    for folder in folders:
        files = {file for name in _CONTENT for file in folder.glob(name)}
        for path in sorted(files):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for piece in range(_PIECES):
                    last = max(size, _PIECES * _PIECE) - _PIECE  # where the last one begins
                    start = piece * last // (_PIECES - 1)
                    if start < size:
                        file.seek(start)
                        digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _pooling(model: str, config: dict[str, Any]) -> str:
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise ValueError(
            f"encoder {model} must pool by mean, cls or last token, got {', '.join(chosen)}; "
            "pass pooling= (--pooling) if one of them will do"
        )
    return _POOLING[chosen[0]]


def _read(model: str, name: str, revision: str | None) -> Any:
    """Return the JSON of one file of a model, None if there is none."""
    path = _find(model, name, revision)
    if path is None or not Path(path).is_file():
        return None
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _find(model: str, name: str, revision: str | None) -> str | Path | None:
    """Return where one file of a model lies, None if it cannot be had just now."""
    if Path(model).is_dir():
        return Path(model) / name
    from transformers.utils.hub import cached_file

    found: str | None = cached_file(
        model,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found

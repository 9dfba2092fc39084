"""Hugging Face encoders (E5, BGE, GTE, Contriever and their kin) as dense vectors."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research_rl.envs.retrieval.encoders.base import Encoder, Vectors
from research_rl.envs.retrieval.encoders.model_card import commit_of, digest_of, read_layout
from research_rl.envs.system import LOADING, code_of

log = logging.getLogger(__name__)
Pooling = Literal["mean", "cls", "last"]
_BGE = "Represent this sentence for searching relevant passages: "
_TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"

_MARKED = (
    "<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>"
)

# What each family was trained with (its model card). The first whose words stand in the lower-case
# name wins; what a model states in its own layout comes before it.
KNOWN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("e5-mistral", {"query_prefix": f"{_TASK}Query: ", "pooling": "last"}),
    ("e5-large-instruct", {"query_prefix": f"{_TASK}Query: "}),
    ("e5", {"query_prefix": "query: ", "passage_prefix": "passage: "}),
    ("koe5", {"query_prefix": "query: ", "passage_prefix": "passage: "}),
    ("bge-multilingual-gemma2", {"query_prefix": _MARKED, "pooling": "last"}),
    ("bge-en-icl", {"query_prefix": _MARKED, "pooling": "last"}),
    ("bge-m3", {"pooling": "cls"}),
    ("bge-small-en", {"query_prefix": _BGE, "pooling": "cls"}),
    ("bge-base-en", {"query_prefix": _BGE, "pooling": "cls"}),
    ("bge-large-en", {"query_prefix": _BGE, "pooling": "cls"}),
    ("bge", {"pooling": "cls"}),
    ("gte-qwen1.5", {"query_prefix": f"{_TASK}Query: ", "pooling": "last"}),
    ("gte-qwen2", {"query_prefix": f"{_TASK}Query: ", "pooling": "last"}),
    ("gte-base-en-v1.5", {"pooling": "cls"}),
    ("gte-large-en-v1.5", {"pooling": "cls"}),
    ("gte-multilingual", {"pooling": "cls"}),
    ("gte-modernbert", {"pooling": "cls"}),
    ("gte", {}),
    ("contriever", {"normalize": False}),
    ("mcontriever", {"normalize": False}),
    ("dpr-ctx_encoder", {"pooling": "cls", "normalize": False}),
)
_CONTEXT, _QUESTION = "dpr-ctx_encoder", "dpr-question_encoder"
_LENGTH = 512


def known_settings(model: str) -> dict[str, Any]:
    """Return prefixes, pooling and normalisation that a model's family was trained with.

    A name that is not known gets no prefixes, mean pooling and vectors of length 1.
    """
    found = _family(model) or {}
    base = {"query_prefix": "", "passage_prefix": "", "pooling": "mean", "normalize": True}
    return base | found


def _family(model: str) -> dict[str, Any] | None:
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    for words, settings in KNOWN:
        if re.search(rf"(?<![a-z0-9]){re.escape(words)}(?![a-z0-9])", name):
            return settings
    return None


def positions_of(model: Any) -> int | None:
    """Return how many tokens a model has positions for, None if it does not say.

    Learned positions are counted without those that stand for padding: RoBERTa and its kin have 514
    rows for 512 tokens.
    """
    import torch

    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [int(found)] if isinstance(found, int) and found > 0 else []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            padding = module.padding_idx
            limits.append(module.num_embeddings - (0 if padding is None else padding + 1))
    return min(limits, default=None)


def _check_first(name: str, model: Any) -> None:
    """Refuse a model whose first token sees no other, as in those that write text.

    Raises:
        ValueError: every text would have the same vector.
    """
    import torch

    ids = torch.tensor([[0] + 7 * [1], [0] + 7 * [2]], device=model.device)
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    one, other = found[:, 0].float()
    if float((one - other).norm()) <= 1e-6 * float(one.norm()):
        raise ValueError(
            f"pooling must be 'last' or 'mean' for {name}, got 'cls': its first token sees no "
            "other, so all texts would have one vector; pass pooling (--pooling last), and build "
            "an index that was made so again"
        )


class HFEncoder(Encoder):
    """Text through a Hugging Face encoder; weights are loaded at the first text.

    Settings that are not given are those that the model states in the layout of
    sentence-transformers, or else those that its family was trained with.

    Args:
        name: model name on the Hub, or a folder.
        query_prefix: put before each query.
        passage_prefix: the same for passages.
        pooling: how token states become one vector: "mean", "cls" (first) or "last".
        normalize: scale vectors to length 1.
        max_length: longer texts are cut to this many tokens; the number that the model states, or
            512, if it is not given (the lower one for a known family on the Hub). Never more than
            its tokenizer and its positions allow.
        batch_size: texts in one forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", ...; "auto" takes the GPU if there is one.
        revision: branch, tag or commit on the Hub; if it is not given, the commit that is loaded
            is kept, so that an index stays with its weights when the model is changed there.
        query_model: another model for queries, as DPR has (found by name for DPR's own).
    """

    def __init__(
        self,
        name: str,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        batch_size: int = 64,
        dtype: str = "float32",
        device: str = "auto",
        revision: str | None = None,
        query_model: str | None = None,
    ) -> None:
        if pooling not in (None, "mean", "cls", "last"):
            raise ValueError(f"pooling must be 'mean', 'cls' or 'last', got {pooling!r}")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        given = {
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
            "pooling": pooling,
            "normalize": normalize,
        }
        chosen = self._stated(name, revision, given)
        given_length = max_length is not None
        max_length = chosen.get("max_length", _LENGTH) if max_length is None else max_length
        if max_length < 1 or batch_size < 1:
            raise ValueError(
                f"max_length and batch_size must be positive, got {max_length} and {batch_size}"
            )
        self.name = name
        self.query_prefix: str = chosen["query_prefix"]
        self.passage_prefix: str = chosen["passage_prefix"]
        self.pooling: Pooling = chosen["pooling"]
        self.normalize: bool = chosen["normalize"]
        self.max_length, self.batch_size = max_length, batch_size
        self._asked = max_length if given_length else None
        self.dtype, self.device, self.revision = dtype, device, revision
        if query_model is None and _CONTEXT in name:
            query_model = name.replace(_CONTEXT, _QUESTION)
        self.query_model = query_model
        self._parts: dict[str, tuple[Any, Any]] = {}

    @staticmethod
    def _stated(name: str, revision: str | None, given: dict[str, Any]) -> dict[str, Any]:
        """Return the settings: those given, else the model's own, else its family's."""
        stated: dict[str, Any] = {}
        if any(value is None for value in given.values()):
            stated = read_layout(name, revision, given["pooling"])
        if _family(name) is not None and not Path(name).is_dir():
            if "max_length" in stated:
                stated["max_length"] = min(stated["max_length"], _LENGTH)  # bge-m3 states 8192
            if not stated.get("normalize"):  # gte-large-en-v1.5 leaves it to who compares
                stated.pop("normalize", None)
        return known_settings(name) | stated | {k: v for k, v in given.items() if v is not None}

    @property
    def dim(self) -> int:
        return int(self._loaded()[1].config.hidden_size)

    def settings(self) -> dict[str, Any]:
        return {
            "query_prefix": self.query_prefix,
            "passage_prefix": self.passage_prefix,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "device": self.device,
            "revision": self.revision,
            "query_model": self.query_model,
        }

    def fingerprint(self) -> str | None:
        folders = [Path(name) for name in (self.name, self.query_model) if name]
        return digest_of([folder for folder in folders if folder.is_dir()])

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode([self.query_prefix + text for text in texts], self.query_model)

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        return self._encode([self.passage_prefix + text for text in texts])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_parts": {}}

    def _loaded(self, name: str | None = None) -> tuple[Any, Any]:
        """Return tokenizer and model, loading them the first time; None is that of passages."""
        key = name or self.name
        if key not in self._parts:
            import torch
            import transformers

            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            if self.revision is None:
                self.revision = commit_of(self.name)
            revision = self.revision if key == self.name else None
            with LOADING, code_of(key) as code:
                config = transformers.AutoConfig.from_pretrained(
                    key, revision=revision, trust_remote_code=code
                )
                loader: Any = transformers.AutoModel
                given = {"trust_remote_code": code}
                if config.model_type == "dpr":  # two towers of one type: only the file knows which
                    loader, given = getattr(transformers, config.architectures[0]), {}
                model = loader.from_pretrained(
                    key, revision=revision, dtype=getattr(torch, self.dtype), **given
                )
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    key, revision=revision, trust_remote_code=code
                )
            self._settle_length(key, tokenizer, model)
            model = model.to(device).eval()
            if self.pooling == "cls" and config.model_type != "dpr":
                _check_first(key, model)
            self._parts[key] = tokenizer, model
        return self._parts[key]

    def _settle_length(self, name: str, tokenizer: Any, model: Any) -> None:
        """Lower ``max_length`` to what tokenizer and model allow.

        Raises:
            ValueError: it leaves no room for a text behind the prefix.
        """
        limits = {"its tokenizer": tokenizer.model_max_length, "its positions": positions_of(model)}
        known = {what: limit for what, limit in limits.items() if limit is not None}
        what, limit = min(known.items(), key=lambda item: item[1])
        if limit < self.max_length:
            if self._asked is not None:
                log.warning(
                    "max_length is %d, and %s takes %d tokens (%s): longer texts are cut to that",
                    self._asked,
                    name,
                    limit,
                    what,
                )
            self.max_length = int(limit)
        for prefix in (self.query_prefix, self.passage_prefix):
            taken = len(tokenizer(prefix)["input_ids"])
            if taken >= self.max_length:
                raise ValueError(
                    f"max_length must leave room for a text, got {self.max_length} tokens, of "
                    f"which {name} takes {taken} for the prefix {prefix!r} and its own marks; "
                    "give a larger one, or a model with more positions"
                )

    def _encode(self, texts: Sequence[str], name: str | None = None) -> Vectors:
        """Return float32 (len(texts), dim); texts of like length share a forward pass."""
        import torch

        tokenizer, model = self._loaded(name)
        out = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            clean = [texts[i].encode("utf-8", "replace").decode("utf-8") for i in rows]
            batch = tokenizer(
                clean,
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                found = model(**batch)
            if "last_hidden_state" in found:  # (rows, L, dim)
                states = found.last_hidden_state.float()
                vectors = self._pool(states, batch["attention_mask"])
            else:  # DPR pools by itself
                vectors = found.pooler_output.float()
            out[rows] = vectors.cpu().numpy()
        return out

    def _pool(self, states: Any, mask: Any) -> Any:
        """Return (rows, dim) from token states (rows, L, dim) and their mask (rows, L)."""
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).float()
            vectors = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        else:
            steps = mask.cumsum(1) * mask  # works for padding on either side
            place = steps.argmax(1) if self.pooling == "last" else mask.argmax(1)
            vectors = states[range(len(states)), place]
        if self.normalize:
            vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return vectors

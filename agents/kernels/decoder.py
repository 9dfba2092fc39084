"""The layers of Llama-like models, computed with a third of the operations that their modules take.

A decode step of a small model takes as long as its operations take to start, however little each
computes; learning takes as long as their results take to be written and read. The weights are those
of the model, which is not changed, or those of a copy, which is taken apart. A model that is not
recognised is left to its own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from research_rl.agents.kernels.cpu_linear import joined
from research_rl.agents.kernels.fused_ops import Rotary, Stream, gated, gated_linear, rms_norm
from research_rl.agents.kernels.torch_internals import (
    has_global_hooks,
    is_untouched,
    plain_kernels,
)

_FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Families whose layers are: norm, attention with rotary positions, norm, gated SiLU."""

_PARTS = (
    "ForCausalLM",
    "Model",
    "DecoderLayer",
    "Attention",
    "MLP",
    "RMSNorm",
    "RotaryEmbedding",
)
"""Classes that a family has of its own."""
_COMMON = (nn.Embedding, nn.Linear, nn.ModuleList, SiLUActivation)

Product = Callable[[Tensor], Tensor]


class Attend(Protocol):
    """Attention of one layer."""

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, /
    ) -> Tensor:
        """Attention (n, H, Dv) of the first n tokens.

        Args:
            layer: its number.
            q: (n, H, D); n is smaller than the number of tokens where the rest is not needed.
            k: (tokens, Hk, D).
            v: (tokens, Hk, Dv).
            scaling: of the scores.
            window: keys a query sees, itself included; None for all.
        """
        ...


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class _Layer:
    before: Tensor  # weight of the norm
    qkv: Sequence[Product]  # of all three together, or of each
    heads: tuple[int, int]  # of queries and of keys
    dim: int
    q_norm: Tensor | None
    k_norm: Tensor | None
    scaling: float
    window: int | None
    out: Product
    between: Tensor
    gate_up: Sequence[Product]
    down: Product

    def projected(self, x: Tensor, turn: Rotary, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (n, H, D), keys (n, Hk, D) and values (n, Hk, D), normed where the model does."""
        h, hk = self.heads
        if len(self.qkv) == 1:
            together = self.qkv[0](x).view(len(x), -1, self.dim)
            if self.q_norm is None and self.k_norm is None:
                turned = turn(together[:, : h + hk])
                return turned[:, :h], turned[:, h:], together[:, h + hk :]
            q, k, v = together.split_with_sizes((h, hk, hk), 1)
        else:
            q, k, v = (f(x).view(len(x), -1, self.dim) for f in self.qkv)
        q = q if self.q_norm is None else rms_norm(q, self.q_norm, eps)
        k = k if self.k_norm is None else rms_norm(k, self.k_norm, eps)
        return turn(q), turn(k), v

    def mixed(self, x: Tensor) -> Tensor:
        """The feed-forward part."""
        if len(self.gate_up) == 1:
            gate, up = self.gate_up[0](x).chunk(2, -1)
        else:
            gate, up = (f(x) for f in self.gate_up)
        if isinstance(self.down, _Linear):
            return gated_linear(gate, up, self.down.weight, self.down.bias)
        return self.down(gated(gate, up))


class Decoder:
    """Computes a flat batch of tokens, with gradient where that is enabled.

    It holds the weights that the model had when it was made.

    Args:
        embed: ids (n,) to (n, D).
        rotary: the model's module for the rotary embedding.
        layers: in order.
        norm: (D,), the weight of the norm behind the last one.
        eps: of all norms.
        head: of the logits.
    """

    def __init__(
        self,
        embed: Product,
        rotary: Any,
        layers: Sequence[_Layer],
        norm: Tensor,
        eps: float,
        head: Product,
    ) -> None:
        self._embed, self._rotary = embed, rotary
        self._layers, self._norm, self._head = layers, norm, head
        self._eps = eps

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, count: int) -> Tensor:
        """Hidden states (count, D) of the first tokens, behind the last norm.

        Args:
            ids: (tokens,).
            positions: (tokens,).
            attend: attention.
            count: how many are wanted; the last layer computes no others.
        """
        stream = Stream(self._embed(ids), self._eps)
        turn = Rotary(*self._rotary(stream.x[None], positions[None]))
        last = len(self._layers) - 1
        for number, layer in enumerate(self._layers):
            q, k, v = layer.projected(stream.normed(layer.before), turn, self._eps)
            if number == last and count < len(ids):
                stream, q = stream.first(count), q[:count]
            mixed = attend(number, q, k, v, layer.scaling, layer.window)
            if not len(mixed):  # it was all about keys and values
                return stream.x
            stream.add(layer.out(mixed.flatten(1)))
            stream.add(layer.mixed(stream.normed(layer.between)))
        return stream.normed(self._norm)

    def logits(self, ids: Tensor, positions: Tensor, attend: Attend, count: int) -> Tensor:
        """Logits (count, V) of the first tokens; see hidden."""
        return self._head(self.hidden(ids, positions, attend, count))


def decoder_of(model: Any, copied: bool) -> Decoder | None:
    """The model's layers, None where they are not all of a known kind or kernels are turned off.

    Args:
        model: a causal language model, without dropout or checkpointed activations.
        copied: the model is a copy that does nothing else: its layers are taken out of it, and
            weights that meet the same input are joined.
    """
    if plain_kernels() or not _is_known(model):
        return None
    body = model.model
    products = joined if copied else _separate
    layers = []
    for number, layer in enumerate(body.layers[: model.config.num_hidden_layers]):
        layers.append(_layer(layer, model.config, products))
        if copied:
            body.layers[number] = nn.Identity()
    (head,) = products([model.lm_head])
    if copied:
        model.lm_head = nn.Identity()
    norm, eps = body.norm.weight, body.norm.variance_epsilon
    table, skipped = body.embed_tokens.weight, body.embed_tokens.padding_idx
    embed = partial(F.embedding, weight=table, padding_idx=skipped)
    return Decoder(embed, body.rotary_emb, layers, norm, eps, head)


def _is_known(model: Any) -> bool:
    """Whether the model consists of a known family's modules alone, and nothing is done to any.

    Adapters, shards and most quantized layers are of other classes; hooks, compiled layers,
    weights of a class of their own and settings that the decoder leaves out are looked for.
    """
    kind = getattr(model.config, "model_type", "")
    if kind not in _FAMILIES:
        return False
    place = f"transformers.models.{kind}.modeling_{kind}"
    names = {_FAMILIES[kind] + part for part in _PARTS}

    def is_plain(module: nn.Module) -> bool:
        cls = type(module)
        own = cls.__module__ == place and cls.__name__ in names
        changed = "forward" in vars(module) or not is_untouched(module)
        tensors = module.parameters(recurse=False)
        return (
            (own or cls in _COMMON)
            and not changed
            and all(type(p) in (nn.Parameter, Tensor) for p in tensors)
        )

    if has_global_hooks() or not all(map(is_plain, model.modules())):
        return False
    table = model.model.embed_tokens
    odd = table.max_norm is not None or table.scale_grad_by_freq or table.sparse
    eps = {m.variance_epsilon for m in model.modules() if hasattr(m, "variance_epsilon")}
    return len(eps) == 1 and not odd


def _separate(layers: Sequence[nn.Linear]) -> list[Product]:
    """The products of the layers' own weights."""
    return [_Linear(layer.weight, layer.bias) for layer in layers]


def _layer(
    layer: Any, config: Any, products: Callable[[Sequence[nn.Linear]], Sequence[Product]]
) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    window = getattr(attention, "sliding_window", None)
    if config.model_type == "mistral":  # each layer reads it when it is called
        window = getattr(config, "sliding_window", None)
    (out,), (down,) = products([attention.o_proj]), products([mlp.down_proj])
    return _Layer(
        before=layer.input_layernorm.weight,
        qkv=products([attention.q_proj, attention.k_proj, attention.v_proj]),
        heads=(config.num_attention_heads, config.num_key_value_heads),
        dim=attention.head_dim,
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        scaling=attention.scaling,
        window=window,
        out=out,
        between=layer.post_attention_layernorm.weight,
        gate_up=products([mlp.gate_proj, mlp.up_proj]),
        down=down,
    )

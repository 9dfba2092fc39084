"""Rollouts laid flat for learning: no padding in the matrix products, a shared prompt read once.

The rollouts of one question begin with the same prompt. Here it stands once, each response behind
it, and the tokens of a response attend to the prompt and to what stands before them in their own
response. Gradients of all responses meet in the prompt. Works with any transformers model whose
attention goes through ``AttentionInterface``; ``PackedForward.check`` refuses the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from research_rl.agents.decoder import Decoder, decoder_of
from research_rl.agents.lm_head import LMHead
from research_rl.agents.own_attention import attention_replaced, refuse_unknown, rope_types
from research_rl.agents.products import attend

NAME = "research_rl_packed"
"""What the model's config calls this attention."""
ENTRY = "packed_hidden"
"""A method of a model that is called instead of the layers below its output head, if it is there:
a model whose weights lie in shards must be entered at its root."""
_QUERIES = (128, 256)
"""Queries of one segment that attend together; the keys behind them are not looked at. More in a
long segment, since each piece has a copy of the keys that it sees."""
_PIECES = 16
"""Of a segment, before its pieces become longer."""
_MAX_SCORES = 1 << 21
"""Scores (rows x queries x keys) of one head in one block of several segments."""
_WASTE = (16, 1 << 13)
"""A block may be filled up by this part of its scores, and by what another block would cost."""
_NEVER = 1 << 60
"""Position of a key that stands for nothing."""


@dataclass(frozen=True)
class _Segment:
    """Tokens that stand together in the flat batch, behind a prefix that stands elsewhere."""

    start: int
    size: int
    prefix: range


@dataclass
class _Block:
    """Queries that attend together: c rows of m queries over n keys; short rows are filled up."""

    queries: Tensor  # (c, m) into the flat batch
    keys: Tensor  # (c, n) into the flat batch
    query_positions: Tensor  # (c, m)
    key_positions: Tensor  # (c, n), _NEVER where a key only fills up
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask (c, 1, m, n): 0 up to the query's own position, else -inf."""
        known = self.masks.get((window, dtype))
        if known is None:
            here, there = self.query_positions[:, None, :, None], self.key_positions[:, None, None]
            hidden = there > here
            if window is not None:
                hidden |= there <= here - window
            known = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            known.masked_fill_(hidden, -torch.inf)
            self.masks[window, dtype] = known
        return known


@dataclass
class Packed:
    """Rows of a padded batch laid flat, and where each target token's prediction stands.

    N targets, in the order of their rows and columns.
    """

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,) in their own sequence
    sources: Tensor  # (N,) into the flat batch: whose hidden state predicts the target
    targets: Tensor  # (N,) token ids
    rows: Tensor  # (N,)
    columns: Tensor  # (N,) of a (B, T) tensor
    shape: tuple[int, int]
    """(B, T) of the padded batch."""
    blocks: list[_Block]
    queries: Tensor  # all blocks' queries, flattened
    keys: Tensor  # all blocks' keys, flattened
    places: Tensor  # (tokens,) into queries: where each token's attention is found

    def padded(self, values: Tensor) -> Tensor:
        """Return (B, T, ...) with the targets' values (N, ...) and 0 elsewhere, with gradient."""
        blank = values.new_zeros(*self.shape, *values.shape[1:])
        return blank.index_put((self.rows, self.columns), values)


def pack(input_ids: Tensor, wanted: Tensor) -> Packed:
    """Lay the rows of a batch flat; equal prompts stand once.

    A row's prompt is what stands before its first target; what stands behind its last one, the
    last target included, is left out, and so is a row without targets.

    Args:
        input_ids: (B, L), padded on the right.
        wanted: (B, T) bool; True at t asks for a prediction of ``input_ids[:, t + 1]``.
    """
    device = input_ids.device
    ids, mask = input_ids.cpu(), wanted.cpu()
    found, columns = mask.nonzero(as_tuple=True)
    rows = found.tolist()
    bounds: dict[int, tuple[int, int]] = {}  # row: first and last column with a target
    for row, column in zip(rows, columns.tolist(), strict=True):
        bounds[row] = (bounds.get(row, (column, column))[0], column)
    layout = _layout(ids, bounds or {0: (0, 0)})
    offset = torch.zeros(len(ids), 2, dtype=torch.long)  # shift of prompt and of response columns
    begin = torch.zeros(len(ids), dtype=torch.long)  # first column of the response
    for row, (prompt, response, size) in layout.where.items():
        offset[row] = torch.tensor([prompt, response - size])
        begin[row] = size
    sources = columns + offset[found, (columns >= begin[found]).long()]
    blocks = _blocks(layout.segments, layout.positions)
    flat_ids, positions = torch.cat(layout.ids), torch.cat(layout.positions)
    queries = torch.cat([block.queries.flatten() for block in blocks])
    places = torch.empty(len(flat_ids), dtype=torch.long)
    places[queries] = torch.arange(len(queries))
    for block in blocks:
        for name in ("queries", "keys", "query_positions", "key_positions"):
            setattr(block, name, getattr(block, name).to(device))
    return Packed(
        ids=flat_ids.to(device),
        positions=positions.to(device),
        sources=sources.to(device),
        targets=input_ids[:, 1:][wanted],
        rows=found.to(device),
        columns=columns.to(device),
        shape=(wanted.shape[0], wanted.shape[1]),
        blocks=blocks,
        queries=queries.to(device),
        keys=torch.cat([block.keys.flatten() for block in blocks]),
        places=places.to(device),
    )


@dataclass
class _Layout:
    ids: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    segments: list[_Segment] = field(default_factory=list)
    where: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Row: begin of its prompt and of its response in the flat batch, size of its prompt."""
    tokens: int = 0

    def add(self, ids: Tensor, position: int, prefix: range) -> range:
        """Append tokens at a position of their sequence; return where they stand."""
        here = range(self.tokens, self.tokens + len(ids))
        if len(ids):
            self.ids.append(ids)
            self.positions.append(torch.arange(position, position + len(ids)))
            self.segments.append(_Segment(here.start, len(ids), prefix))
            self.tokens = here.stop
        return here


def _layout(ids: Tensor, bounds: dict[int, tuple[int, int]]) -> _Layout:
    layout, prompts = _Layout(), dict[tuple[int, ...], range]()
    for row, (first, last) in bounds.items():
        size = first + 1
        key = tuple(ids[row, :size].tolist())
        if key not in prompts:
            prompts[key] = layout.add(ids[row, :size], 0, range(0))
        prompt = prompts[key]
        response = layout.add(ids[row, size : last + 1], size, prompt)
        layout.where[row] = (prompt.start, response.start, size)
    return layout


def _blocks(segments: Sequence[_Segment], positions: Sequence[Tensor]) -> list[_Block]:
    """Group pieces of the segments so that little is filled up and the scores stay small."""
    groups: list[list[_Piece]] = []
    for piece in sorted(
        (piece for i, s in enumerate(segments) for piece in _pieces(i, s)),
        key=lambda p: (p.seen, p.size, p.segment),
        reverse=True,
    ):
        if groups and _fits([*groups[-1], piece]):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    flat = torch.cat([*positions])
    return [_block(group, segments, flat) for group in groups]


class _Piece(NamedTuple):
    """Queries of a segment that attend together, and how many keys the last of them sees."""

    size: int
    seen: int
    segment: int
    begin: int
    """Its first token, in the segment."""


def _pieces(number: int, segment: _Segment) -> Iterator[_Piece]:
    """Cut a segment evenly."""
    few, many = _QUERIES
    count = -(-segment.size // min(many, max(few, segment.size // _PIECES)))
    bounds = [segment.size * i // count for i in range(count + 1)]
    for begin, end in pairwise(bounds):
        yield _Piece(end - begin, len(segment.prefix) + end, number, begin)


def _fits(group: list[_Piece]) -> bool:
    """Whether the pieces are so much alike that one block of them wastes little."""
    whole = len(group) * max(p.size for p in group) * max(p.seen for p in group)
    own = sum(p.size * p.seen for p in group)
    part, some = _WASTE
    return whole <= _MAX_SCORES and whole - own <= own // part + some


def _block(group: list[_Piece], segments: Sequence[_Segment], positions: Tensor) -> _Block:
    size, width = max(p.size for p in group), max(p.seen for p in group)
    queries = torch.empty(len(group), size, dtype=torch.long)
    keys = torch.zeros(len(group), width, dtype=torch.long)
    key_positions = torch.full((len(group), width), _NEVER)
    for row, piece in enumerate(group):
        segment = segments[piece.segment]
        begin = segment.start + piece.begin
        end = begin + piece.size
        queries[row] = torch.arange(begin, begin + size).clamp(max=end - 1)
        prefix = torch.arange(segment.prefix.start, segment.prefix.stop)
        keys[row, : piece.seen] = torch.cat((prefix, torch.arange(segment.start, end)))
        keys[row, piece.seen :] = begin
        key_positions[row, : piece.seen] = positions[keys[row, : piece.seen]]
    return _Block(queries, keys, positions[queries], key_positions)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a flat batch, with gradient; the transformers interface.

    Args:
        module: the attention layer, for its name.
        query: (1, H, tokens, D).
        key: (1, Hk, tokens, D).
        value: (1, Hk, tokens, Dv).
        attention_mask: None; the batch says who sees whom.
        scaling: of the scores; D ** -0.5 when None.
        dropout: of the attention weights.
        sliding_window: keys a query sees, itself included; None for all.
        softcap: scores are bent to stay within it (Gemma 2).
        packed: the batch.
        kwargs: what else the model hands over; anything unknown that is set is refused.

    Returns:
        (1, tokens, H, Dv) and None.

    Raises:
        NotImplementedError: the model asks for something that would be left out.
    """
    refuse_unknown("packed learning", module, attention_mask, packed, kwargs)
    assert packed is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return attend_packed(packed, q, k, v, scale, sliding_window, softcap, dropout)[None], None


def attend_packed(
    packed: Packed,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention (tokens, H, Dv) of a flat batch, with gradient.

    Args:
        packed: the batch.
        q: (tokens, H, D).
        k: (tokens, Hk, D).
        v: (tokens, Hk, Dv).
        scaling: of the scores.
        window: keys a query sees, itself included; None for all.
        softcap: scores are bent to stay within it (Gemma 2).
        dropout: of the attention weights.
    """
    # one gather for all blocks: its backward is one pass over the tokens, not one for each block
    q, k, v = (
        x.index_select(0, index)
        for x, index in ((q, packed.queries), (k, packed.keys), (v, packed.keys))
    )
    parts = zip(
        packed.blocks,
        q.split_with_sizes([block.queries.numel() for block in packed.blocks]),
        k.split_with_sizes([block.keys.numel() for block in packed.blocks]),
        v.split_with_sizes([block.keys.numel() for block in packed.blocks]),
        strict=True,
    )
    out = []
    for block, *tensors in parts:
        shapes = (block.queries.shape, block.keys.shape, block.keys.shape)
        rows = [
            x.view(*s, *x.shape[1:]).transpose(1, 2) for x, s in zip(tensors, shapes, strict=True)
        ]
        mask = block.mask(window, q.dtype)
        mixed = attend(rows[0], rows[1], rows[2], mask, scaling, dropout, softcap)
        out.append(mixed.transpose(1, 2).reshape(-1, mixed.shape[1], mixed.shape[3]))
    return torch.cat(out).index_select(0, packed.places)


AttentionInterface.register(NAME, packed_attention)


class PackedForward:
    """A causal language model called with a flat batch, below its output head.

    Args:
        model: of transformers, possibly wrapped by peft.
    """

    def __init__(self, model: nn.Module) -> None:
        inner: Any = model
        self.model: Any = inner.get_base_model() if hasattr(inner, "peft_config") else inner

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Let the model attend in flat batches inside; its own attention is put back behind.

        Backward passes belong inside too: checkpointed activations are computed there again.
        """
        with attention_replaced(self.model, NAME):
            yield

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states (N, D) that predict the targets; call it inside ``enabled``."""
        if (decoder := self._decoder()) is not None:

            def attend(layer: int, *of_layer: Any) -> Tensor:
                return attend_packed(packed, *of_layer)

            states = decoder.hidden(packed.ids, packed.positions, attend, len(packed.ids))
            return states.index_select(0, packed.sources)
        call = getattr(self.model, ENTRY, None) or self.model.base_model
        out = call(
            input_ids=packed.ids[None],
            position_ids=packed.positions[None],
            use_cache=False,
            packed=packed,
        )
        found: Tensor = out.last_hidden_state[0]
        return found.index_select(0, packed.sources)

    def _decoder(self) -> Decoder | None:
        """The model's layers with the weights of now, where they need not be called themselves."""
        model = self.model
        dropped = model.training and getattr(model.config, "attention_dropout", 0.0)
        again = model.training and any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )
        low = torch.is_autocast_enabled(next(model.parameters()).device.type)
        return None if dropped or again or low else decoder_of(model, copied=False)

    def head(self, temperature: float = 1.0) -> LMHead:
        """Return the output head as it is now; call it behind ``hidden``, which gathers shards.

        Raises:
            NotImplementedError: it is not a plain linear layer.
        """
        layer = self.model.get_output_embeddings()
        if type(layer) is not nn.Linear:
            raise NotImplementedError(
                f"packed learning must have a linear output head, got {type(layer).__name__}"
            )
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return LMHead(layer.weight, layer.bias, cap, temperature)

    @torch.no_grad()
    def check(self) -> None:
        """Compare the log-probs of three short texts with the stock forward pass.

        Raises:
            NotImplementedError: they differ, or the model's attention cannot be replaced.
        """
        name, config = type(self.model).__name__, self.model.config
        if dynamic := rope_types(config) & {"dynamic", "longrope"}:
            raise NotImplementedError(
                "packed learning must see positions that do not depend on the batch, got "
                f"{name} with rope_type {dynamic.pop()!r}"
            )
        if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
            raise NotImplementedError(f"packed learning got {name}, which attends in chunks")
        weight = self.model.get_output_embeddings().weight
        ids = torch.arange(36, device=weight.device).view(3, 12) * 7 % weight.shape[0]
        ids[1, :5] = ids[0, :5]
        wanted = torch.ones(3, 11, dtype=torch.bool, device=weight.device)
        wanted[:, :4] = False
        with torch.autocast(weight.device.type, enabled=False):
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
            stock = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][wanted]
            packed = pack(ids, wanted)
            with self.enabled():
                hidden = self.hidden(packed)
                ours = self.head().logprobs(hidden, packed.targets)[0]
        worst = float((ours - stock).abs().max() / stock.abs().max().clamp(min=1.0))
        full = logits.dtype in (torch.float32, torch.float64)
        if bool(stock.isfinite().all()) and not worst <= (0.01 if full else 0.1):
            raise NotImplementedError(
                f"packed learning must compute what {name} does, got log-probs that differ by "
                f"{worst:.2g} of their size"
            )

"""A forward pass with the cache that the model itself makes, for many sequences at once.

What a model keeps of the tokens it has read is of many kinds: keys and values, windows of
convolutions, recurrent states. Padding would spoil all but the first, so none is ever read: each
row is read alone, and rows are joined behind what they have read. Then only keys and values differ
in length; those of shorter rows are filled up on the left and masked.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig

from research_rl.agents.kernels import text_config
from research_rl.agents.proofs import mixer_gap, mixers_noted

_NAMES = ("past_key_values", "cache_params", "state", "mems")
"""What models call their cache."""
_LENGTH = "cumulative_length"
"""What a layer with a window calls the number of tokens that it has seen."""


class _Found(NamedTuple):
    """What a call with a cache gave for a token.

    Args:
        text: whole.
        place: of the token in it.
        logits: (V,) of the token behind.
        row: of the text in the call.
    """

    text: list[int]
    place: int
    logits: Tensor
    row: int = 0


@dataclass
class CachedRows:
    """Rows that decode together."""

    cache: Any
    lengths: list[int]
    """Tokens of each row that the cache holds."""


def joined_rows(parts: Sequence[CachedRows]) -> CachedRows:
    """Return the rows of all parts together, in order; the parts stay as they are.

    Raises:
        ValueError: their caches differ in more than the length of keys and values.
    """
    return CachedRows(
        _zipped("", [part.cache for part in parts], _side_by_side),
        [length for part in parts for length in part.lengths],
    )


def chosen(rows: CachedRows, which: Sequence[int]) -> CachedRows:
    """Return some of the rows, without what fills all of them up."""
    lengths = [rows.lengths[i] for i in which]
    longest, index = max(lengths), list(which)

    def choose(name: str, parts: list[Any]) -> Any:
        (value,) = parts
        if name == _LENGTH:
            return longest
        if not _has_rows(value):
            return value
        value = value[index]
        if _is_sequence(name, value):
            value = value[..., value.shape[-2] - min(longest, value.shape[-2]) :, :]
        return value.contiguous()

    return CachedRows(_zipped("", [rows.cache], choose), lengths)


def _zipped(name: str, parts: list[Any], leaf: Callable[[str, list[Any]], Any]) -> Any:
    """What ``leaf`` makes of the numbers and tensors that stand in the same place of all parts."""
    first = parts[0]
    if isinstance(first, dict):
        return {k: _zipped(str(k), [p[k] for p in parts], leaf) for k in first}
    if isinstance(first, list | tuple):
        return type(first)(_zipped(name, list(same), leaf) for same in zip(*parts, strict=True))
    if isinstance(first, Tensor | int | float):
        return leaf(name, parts)
    if not hasattr(first, "__dict__") or isinstance(first, PreTrainedConfig | nn.Module | type):
        return first
    twin = copy.copy(first)
    for key in vars(first):
        twin.__dict__[key] = _zipped(key, [vars(p)[key] for p in parts], leaf)
    return twin


def _has_rows(value: Any) -> bool:
    """Whether this is a tensor with the rows in front; a counter is not."""
    if not isinstance(value, Tensor) or value.ndim == 0 or not value.numel():
        return False
    return value.ndim > 1 or value.is_floating_point()


def _is_sequence(name: str, value: Tensor) -> bool:
    """Whether it grows with each token: keys and values (rows, ..., tokens, size)."""
    return ("keys" in name or "values" in name) and value.ndim > 2


def _grows(name: str, value: Any) -> bool:
    """Whether anything of a cache grows with each token."""
    if isinstance(value, Tensor):
        return _is_sequence(name, value)
    if isinstance(value, list | tuple):
        return any(_grows(name, v) for v in value)
    inner = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return any(_grows(str(k), v) for k, v in inner.items())


def _side_by_side(name: str, parts: list[Any]) -> Any:
    first = parts[0]
    if name == _LENGTH:
        return max(parts)
    if not _has_rows(first):
        if any(bool((p != first).any()) if isinstance(p, Tensor) else p != first for p in parts):
            raise ValueError(f"caches must agree in {name} to be joined")
        return first
    if _is_sequence(name, first):
        longest = max(p.shape[-2] for p in parts)
        parts = [F.pad(p, (0, 0, longest - p.shape[-2], 0)) for p in parts]
    return torch.cat(parts)


@dataclass(frozen=True)
class CacheWays:
    """What the cache of a model can do."""

    given: bool = False
    """The model takes a cache that is made for it; else it makes its own."""
    reads_on: bool = False
    """Several tokens are read behind what it holds; else one at a time."""
    joins: Literal["any", "equal", "none"] = "none"
    """Which rows decode together: any, those of equal length, or none."""
    gap: float = 0.0
    """How far logits with the cache are from those without, as a part of their spread."""


class CacheForward:
    """A model, called with its own cache.

    Args:
        model: a causal language model; a peft model is called below its wrapper, adapters on.
        ways: as ``check`` found them.
    """

    def __init__(self, model: nn.Module, ways: CacheWays | None = None) -> None:
        wrapped: Any = model
        self.model: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
        self.ways = ways or CacheWays()
        self._takes = set(inspect.signature(self.model.forward).parameters)
        self._name = next((name for name in _NAMES if name in self._takes), _NAMES[0])

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def read(
        self, ids: Sequence[int], behind: CachedRows | None = None
    ) -> tuple[Tensor, CachedRows]:
        """Read tokens of one row; logits (1, V) of the next, and the row.

        Args:
            ids: at least one.
            behind: what the row holds already, which is used up; None begins one.
        """
        batch = torch.tensor([list(ids)], device=self.device)
        return self._called(batch, behind or CachedRows(None, [0]))

    def step(self, tokens: Tensor, rows: CachedRows) -> tuple[Tensor, CachedRows]:
        """Read a token (n,) of each row; logits (n, V) of the next, and the rows.

        Args:
            tokens: on the model's device.
            rows: used up.
        """
        return self._called(tokens[:, None], rows)

    def _called(self, ids: Tensor, rows: CachedRows) -> tuple[Tensor, CachedRows]:
        size, longest = ids.shape[1], max(rows.lengths)
        held = torch.tensor(rows.lengths, device=ids.device)
        given: dict[str, Any] = {}
        if "position_ids" in self._takes:
            given["position_ids"] = held[:, None] + torch.arange(size, device=ids.device)
        if min(rows.lengths) < longest and _grows("", rows.cache):
            place = torch.arange(longest + size, device=ids.device)
            given["attention_mask"] = (place >= longest - held[:, None]).long()
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        if rows.cache is not None:
            given[self._name] = rows.cache
        elif self.ways.given:
            given[self._name] = DynamicCache(config=text_config(self.model.config))
        out = self.model(input_ids=ids, use_cache=True, **given)
        cache = getattr(out, self._name, None)
        if cache is None:  # RecurrentGemma writes to the one that it is given, and says nothing
            cache = given.get(self._name)
        if cache is None:
            raise ValueError("no cache")
        return out.logits[:, -1], CachedRows(cache, [n + size for n in rows.lengths])

    @torch.no_grad()
    def check(self) -> CacheWays | None:
        """Find out, on short texts, in which ways the cache gives what the stock forward pass does.

        Returns:
            The ways, which are taken from now on; None where logits that are not finite tell
            nothing.

        Raises:
            NotImplementedError: there is none.
        """
        vocab = self.model.get_input_embeddings().weight.shape[0]
        one, other = ([(7 * i + 3 * n) % vocab for i in range(n)] for n in (16, 13))
        with torch.autocast(self.device.type, enabled=False), mixers_noted(self.model) as mixed:
            stock = {tuple(text): self._stock(text, mixed) for text in (one, other, one[::-1])}
            if not all(bool(logits.isfinite().all()) for logits, _ in stock.values()):
                return None
            full = next(self.model.parameters()).dtype in (torch.float32, torch.float64)
            largest = 0.01 if full else 0.1

            def gap_of(found: Iterator[_Found]) -> tuple[float, str]:
                return _worst(self._gap(one, *stock[tuple(one.text)], mixed) for one in found)

            gap, why = math.inf, ""
            for given in (False, True):
                self.ways = CacheWays(given)
                gap, why = gap_of(self._in_turn(one, other))
                if gap <= largest:
                    break
            if gap <= largest and _worst(self._touched(one, other))[0] > largest / 100:
                gap, why = math.inf, "sequences that change each other"
            if not gap <= largest:
                raise NotImplementedError(
                    f"{type(self.model).__name__} must compute with its cache what it computes "
                    f"without, got {why}"
                )
            noise = max(3 * gap, largest / 100)
            reads_on = gap_of(self._read_on(one))[0] <= noise
            joins: Literal["any", "equal", "none"] = "none"
            if gap_of(self._together(one, other))[0] <= noise:
                joins = "any"
            elif gap_of(self._together(one, one[::-1]))[0] <= noise:
                joins = "equal"
            self.ways = CacheWays(self.ways.given, reads_on, joins, gap)
        return self.ways

    def _stock(self, text: list[int], mixed: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits (tokens, V) without a cache, and what each mixer gave, (tokens, D)."""
        ids = torch.tensor([text], device=self.device)
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return logits.float(), [out[0] for out in mixed if out.shape[:2] == (1, len(text))]

    @staticmethod
    def _gap(found: _Found, logits: Tensor, theirs: list[Tensor], mixed: list[Tensor]) -> float:
        """How far logits and mixers of a token are from those without a cache."""
        gap = _distance(found.logits, logits[found.place])
        ours = [out[found.row, -1] for out in mixed if len(out) > found.row]
        if len(ours) != len(theirs):  # some are called otherwise: logits have to do
            return gap
        return max(gap, mixer_gap(ours, [out[found.place] for out in theirs]))

    def _one(self, text: list[int], place: int) -> Tensor:
        return torch.tensor(text[place : place + 1], device=self.device)

    def _in_turn(self, *texts: list[int]) -> Iterator[_Found]:
        """A token of each text in turn behind the first five; some models keep a state outside."""
        held = []
        for text in texts:
            logits, rows = self.read(text[:5])
            held.append(rows)
            yield _Found(text, 4, logits[0])
        for place in range(5, min(map(len, texts))):
            for i, text in enumerate(texts):
                logits, held[i] = self.step(self._one(text, place), held[i])
                yield _Found(text, place, logits[0])

    def _touched(self, text: list[int], other: list[int]) -> Iterator[float]:
        """By how much another neighbour changes the logits of a text; the size says nothing."""
        with_other, with_another = (
            [one.logits for one in self._in_turn(text, beside) if one.text is text]
            for beside in (other, other[::-1])
        )
        yield from map(_distance, with_other, with_another)

    def _read_on(self, text: list[int]) -> Iterator[_Found]:
        """In pieces of two and more tokens, with a single one between."""
        rows = None
        for begin, end in ((0, 5), (5, 7), (7, 8), (8, 12), (12, 14), (14, len(text))):
            logits, rows = self.read(text[begin:end], rows)
            yield _Found(text, end - 1, logits[0])

    def _together(self, *texts: list[int]) -> Iterator[_Found]:
        """Side by side behind all but the last five tokens; for the last two each alone again."""
        begins = [len(text) - 5 for text in texts]
        pairs = list(zip(texts, begins, strict=True))
        rows = joined_rows([self.read(text[:begin])[1] for text, begin in pairs])
        for more in range(3):
            tokens = torch.cat([self._one(text, begin + more) for text, begin in pairs])
            logits, rows = self.step(tokens, rows)
            for i, (text, begin) in enumerate(pairs):
                yield _Found(text, begin + more, logits[i], i)
        for i, (text, begin) in enumerate(pairs):
            alone = chosen(rows, [i])
            for more in (3, 4):
                logits, alone = self.step(self._one(text, begin + more), alone)
                yield _Found(text, begin + more, logits[0])


def _worst(gaps: Iterator[float]) -> tuple[float, str]:
    """The largest, also in words; infinity where they cannot be had."""
    try:
        worst = max(gaps)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model does with a cache that it cannot use
        return math.inf, f"{type(error).__name__} ({str(error).strip().partition(chr(10))[0]})"
    return worst, f"what differs by {worst:.2g} of its size"


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """How far logits (V,) are apart, as a part of their spread; what is added to all is nothing."""
    gap = ours.float() - theirs.float()
    return float(gap.std() / theirs.float().std().clamp(min=1e-12))

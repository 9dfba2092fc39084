"""Keys and values of the sequences that are being sampled, one slot each."""

from __future__ import annotations

from torch import Tensor

_GRAIN = 256
"""Capacity is a multiple of this, so that it seldom grows."""


class SlotCache:
    """A key-value cache of a fixed number of slots whose length grows as it is needed.

    Layers are allocated when they first write, in the shape and dtype of what they write, so
    nothing about the model has to be known beforehand.

    Args:
        slots: how many sequences it holds.
        bound: tokens a slot can ever need.
    """

    def __init__(self, slots: int, bound: int) -> None:
        self._slots = slots
        self._bound = bound
        self._capacity = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # (slots, Hk, capacity, D) each

    def reserve(self, length: int) -> None:
        """Make room for this many tokens in every slot.

        Raises:
            ValueError: that is more than the bound.
        """
        if length <= self._capacity:
            return
        if length > self._bound:
            raise ValueError(f"a slot holds at most {self._bound} tokens, got {length}")
        wanted = max(length, self._capacity * 3 // 2)
        self._capacity = min(self._bound, -(-wanted // _GRAIN) * _GRAIN)
        for index, pair in self._layers.items():
            keys, values = (self._grown(old) for old in pair)
            self._layers[index] = (keys, values)

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (slots, Hk, capacity, D); key and value give the shape.

        Args:
            index: of the layer.
            key: (tokens, Hk, D), anything that this layer writes.
            value: likewise.
        """
        if index not in self._layers:
            shape = (self._slots, key.shape[1], self._capacity)
            self._layers[index] = (
                key.new_zeros(*shape, key.shape[2]),
                value.new_zeros(*shape, value.shape[2]),
            )
        return self._layers[index]

    def copy(self, source: list[int], target: list[int], length: int) -> None:
        """Copy the first tokens of the source slots to the target slots, pair by pair."""
        for pair in self._layers.values():
            for cache in pair:
                cache[target, :, :length] = cache[source, :, :length]

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(*old.shape[:2], self._capacity, old.shape[3])
        new[:, :, : old.shape[2]] = old
        return new

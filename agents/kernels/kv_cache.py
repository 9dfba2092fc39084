"""The key-value cache of the sequences that are being sampled: one slot for each.

A slot that a finished sequence leaves is taken by the next one, so the cache never grows with the
number of sequences, only with their length.
"""

from __future__ import annotations

from itertools import chain

from torch import Tensor

_GRAIN = 64
"""Capacity is a multiple of this."""


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
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, length: int) -> None:
        """Make room for this many tokens in every slot.

        Raises:
            ValueError: that is more than the bound.
        """
        if length <= self._capacity:
            return
        if length > self._bound:
            raise ValueError(f"a slot holds at most {self._bound} tokens, got {length}")
        # tensors of ever new sizes would leave holes in a device's memory
        wanted = length if self._on_host else max(length, self._capacity * 3 // 2)
        self._capacity = min(self._bound, -(-wanted // _GRAIN) * _GRAIN)
        for index, (keys, values) in self._layers.items():
            self._layers[index] = (self._grown(keys), self._grown(values))

    @property
    def capacity(self) -> int:
        """Tokens that a slot has room for now."""
        return self._capacity

    @property
    def _on_host(self) -> bool:
        return all(keys.device.type == "cpu" for keys, _ in self._layers.values())

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (slots, Hk, capacity, D) and values (slots, Hk, capacity, Dv) of one layer.

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
        """Copy the first tokens of the source slots to the target slots, pair by pair.

        All are read before any is written, so slots may change places.
        """
        for kept in chain.from_iterable(self._layers.values()):
            kept[target, :, :length] = kept[source, :, :length]

    def _grown(self, old: Tensor) -> Tensor:
        slots, heads, capacity, dim = old.shape
        new = old.new_empty(slots, heads, self._capacity, dim)
        new[:, :, :capacity] = old
        new[:, :, capacity:] = 0  # what is masked is multiplied by 0, and must be finite
        return new

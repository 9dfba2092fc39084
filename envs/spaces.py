"""A Text space of any Unicode string, lone surrogates included, that every Gymnasium tool can use.

Stock ``Text`` lists its alphabet, so all of Unicode costs seconds and hundreds of megabytes, and
its shared-memory reader gives AsyncVectorEnv a constant. Here the alphabet is virtual, and the
reader is a live view that decodes when it is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

import numpy as np
from gymnasium.spaces import Text, Tuple
from gymnasium.spaces.utils import flatten, unflatten
from gymnasium.vector.utils import (
    batch_space,
    read_from_shared_memory,
    write_to_shared_memory,
)
from numpy.typing import NDArray

_SIZE = 0x110000  # code points of Unicode; also what pads a flattened string
_SAMPLED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!'-é世\n"
_LONGEST_SAMPLE = 64


class _EveryCharacter:
    """Takes the place of Text's alphabet: set, list and index of all code points, none stored."""

    def __len__(self) -> int:
        return _SIZE

    def __contains__(self, char: object) -> bool:
        return isinstance(char, str) and len(char) == 1

    def __getitem__(self, code: int) -> str:
        return chr(code)

    def __iter__(self) -> Iterator[str]:
        return map(chr, range(_SIZE))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EveryCharacter)

    def __hash__(self) -> int:
        return hash(_EveryCharacter)


class UnicodeText(Text):  # a Text, because TorchRL knows text spaces by that class
    """All strings of ``min_length`` to ``max_length`` characters.

    Flattened, a string is ``max_length`` int32 code points, padded with 0x110000. Samples are
    short strings of harmless characters.

    Args:
        max_length: longest string, in characters.
        min_length: shortest string.
        seed: seed of ``sample``.
    """

    def __init__(
        self,
        max_length: int,
        *,
        min_length: int = 0,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(max_length, min_length=min_length, charset="a", seed=seed)
        every: Any = _EveryCharacter()
        self._char_set = self._char_list = every
        self._char_index = {}
        self._char_str = _SAMPLED

    def contains(self, x: Any) -> bool:
        """Return whether ``x`` is a string of an allowed length."""
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length

    def character_index(self, char: str) -> np.int32:
        """Return the code point of a character."""
        return np.int32(ord(char))

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a random string of at most ``min_length + 64`` characters; masks are refused."""
        if mask is not None or probability is not None:
            raise ValueError(
                "mask and probability must be None for UnicodeText, whose alphabet is all of "
                "Unicode; use gymnasium.spaces.Text to sample from a masked alphabet"
            )
        longest = min(self.max_length, self.min_length + _LONGEST_SAMPLE)
        length = int(self.np_random.integers(self.min_length, longest + 1))
        return "".join(self.np_random.choice(list(_SAMPLED), size=length))

    def __repr__(self) -> str:
        return f"UnicodeText({self.min_length}, {self.max_length})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnicodeText):
            return False
        return (self.min_length, self.max_length) == (other.min_length, other.max_length)

    __hash__ = None  # type: ignore[assignment]


@batch_space.register(UnicodeText)
def _batch(space: UnicodeText, n: int = 1) -> Tuple[Any]:
    """Return the space of ``n`` rows, each with a seed of its own if the single space has one."""
    seeds: list[Any] = [None] * n
    if space._np_random is not None:
        seeds = deepcopy(space._np_random).integers(2**31, size=n).tolist()
    return Tuple(
        [UnicodeText(space.max_length, min_length=space.min_length, seed=seed) for seed in seeds]
    )


def _encode(text: str) -> NDArray[np.int32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32)


def _decode(codes: NDArray[np.int32]) -> str:
    return codes[codes < _SIZE].tobytes().decode("utf-32-le", "surrogatepass")


def _rows(memory: SynchronizedArray[int], width: int) -> NDArray[np.int32]:
    raw: Any = memory.get_obj()
    return np.frombuffer(raw, np.int32).reshape(-1, width)


@flatten.register(UnicodeText)
def _flatten(space: UnicodeText, x: str) -> NDArray[np.int32]:  # type: ignore[misc]
    flat = np.full(space.max_length, _SIZE, np.int32)
    codes = _encode(x)
    flat[: len(codes)] = codes
    return flat


@unflatten.register(UnicodeText)
def _unflatten(space: UnicodeText, x: NDArray[np.int32]) -> str:  # type: ignore[misc]
    return _decode(np.asarray(x, np.int32))


# Gymnasium 1.4.0: without these two, AsyncVectorEnv returns one constant string for every row of a
# text space, silently; and with shared_memory=False, a reset after the end of an episode makes it
# drop the next action.
@write_to_shared_memory.register(UnicodeText)
def _write(
    space: UnicodeText, index: int, value: str, shared_memory: SynchronizedArray[int]
) -> None:
    row, codes = _rows(shared_memory, space.max_length)[index], _encode(value)
    row[: len(codes)] = codes
    row[len(codes) : len(codes) + 1] = _SIZE  # one mark is enough: readers stop there


class _SharedTexts:
    """The strings in shared memory, decoded when they are read; a deep copy is a plain tuple.

    It must be a live view: AsyncVectorEnv asks for it once and expects later writes to show in it.
    """

    def __init__(self, memory: SynchronizedArray[int], width: int) -> None:
        self._memory, self._width = memory, width

    def __len__(self) -> int:
        return len(_rows(self._memory, self._width))

    def __getitem__(self, index: int) -> str:
        row = _rows(self._memory, self._width)[index]
        end = int(np.argmax(row == _SIZE)) if (row == _SIZE).any() else len(row)
        return _decode(row[:end])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


@read_from_shared_memory.register(UnicodeText)
def _read(space: UnicodeText, shared_memory: SynchronizedArray[int], n: int = 1) -> _SharedTexts:
    return _SharedTexts(shared_memory, space.max_length)

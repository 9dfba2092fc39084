"""UnicodeText holds every string, costs nothing, and survives every Gymnasium tool."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
from copy import deepcopy

import numpy as np
import pytest
from gymnasium.spaces import Text, flatdim, flatten, flatten_space, unflatten
from gymnasium.vector.utils import (
    batch_space,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs import UnicodeText

SPACE = UnicodeText(40)
ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=40)


@given(ANY)
def test_every_string_is_in_the_space_and_survives_flattening(text: str) -> None:
    assert text in SPACE
    flat = flatten(SPACE, text)
    assert flat in flatten_space(SPACE)
    assert len(flat) == flatdim(SPACE) == 40
    assert unflatten(SPACE, flat) == text


@given(ANY, ANY)
def test_shared_memory_is_read_live_and_copied_as_strings(first: str, second: str) -> None:
    memory = create_shared_memory(SPACE, n=2, ctx=multiprocessing)
    view = read_from_shared_memory(SPACE, memory, n=2)
    for text in (first, second, ""):
        write_to_shared_memory(SPACE, 1, text, memory)
        assert deepcopy(view)[1] == text
        assert view[1] == text
    assert len(view) == 2
    assert list(view)[1] == ""


def test_length_is_all_that_is_asked_of_a_string() -> None:
    assert "x" * 40 in SPACE
    assert "x" * 41 not in SPACE
    assert 3 not in SPACE
    assert "" not in UnicodeText(5, min_length=1)


def test_samples_are_seeded_short_and_inside() -> None:
    one, two = UnicodeText(30_000, seed=3), UnicodeText(30_000, seed=3)
    samples = [one.sample() for _ in range(20)]
    assert samples == [two.sample() for _ in range(20)]
    assert all(sample in one and len(sample) <= 64 for sample in samples)
    assert len(set(samples)) > 10
    with pytest.raises(ValueError, match="mask"):
        one.sample(mask=(3, None))


def test_the_space_is_small_whatever_is_done_to_it() -> None:
    space = UnicodeText(1 << 20)
    assert repr(space) == "UnicodeText(0, 1048576)"
    assert len(pickle.dumps(space)) < 2000
    assert pickle.loads(pickle.dumps(space)) == space
    assert deepcopy(space) == space
    assert sys.getsizeof(space.character_set) < 100
    assert len(space.character_set) == 0x110000
    assert isinstance(space, Text)


def test_equality_is_by_length() -> None:
    assert UnicodeText(40) == SPACE
    assert UnicodeText(41) != SPACE
    assert Text(40) != SPACE


def test_samples_go_to_json_and_back() -> None:
    samples = ["a", "\ud800", "世界\n"]
    stored = json.loads(json.dumps(SPACE.to_jsonable(samples)))
    assert SPACE.from_jsonable(stored) == samples


def test_a_batch_is_cheap_equal_and_seeded_when_the_space_is() -> None:
    seeded = UnicodeText(40, seed=1)
    one, two = batch_space(seeded, 3), batch_space(seeded, 3)
    assert one == two == batch_space(UnicodeText(40), 3)
    assert one.sample() == two.sample()
    assert len(set(batch_space(SPACE, 200).sample())) > 100
    assert np.asarray(SPACE.character_index("é")) == ord("é")

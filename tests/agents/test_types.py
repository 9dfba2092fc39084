"""A rollout as a row of JSON: nothing is lost, and a row of text alone refuses to show ids."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from doubles.sample_rollouts import rollout
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.agents.types import Rollout, Sequence, TextOnly
from research_rl.envs.types import Question, Reward

ID_COLUMNS = (
    "prompt_ids",
    "response_ids",
    "loss_mask",
    "logprobs",
    "turn_start",
    "finish",
    "versions",
)
TEXTS = st.lists(st.text(max_size=20), max_size=3)
NUMBERS = st.floats(allow_nan=False)
IDS = st.integers(0, 1 << 20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    size = draw(st.integers(0, 9))
    return Sequence(
        draw(st.lists(IDS, max_size=5)),
        *(draw(st.lists(x, min_size=size, max_size=size)) for x in (IDS, st.booleans(), NUMBERS)),
        draw(st.integers(0, size)),
        draw(st.sampled_from(["running", "stop", "eos", "length"])),
        draw(st.lists(st.integers(0, 99), max_size=3)),
    )


ROLLOUTS = st.builds(
    Rollout,
    st.builds(
        Question,
        st.text(max_size=9),
        st.text(max_size=20),
        st.lists(st.text(max_size=9), max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=9), JSON, max_size=3),
    ),
    sequences() | st.builds(TextOnly),
    st.builds(Reward, NUMBERS, NUMBERS, NUMBERS, st.none() | st.text(max_size=9), st.text()),
    TEXTS,
    TEXTS,
    st.text(max_size=9),
    TEXTS,
    st.lists(TEXTS, max_size=3),
    st.none() | st.integers(0, (1 << 63) - 1),
)


@given(ROLLOUTS)
@settings(max_examples=100, deadline=None)
def test_a_row_holds_the_whole_rollout(one: Rollout) -> None:
    row = one.to_row()
    assert Rollout.from_row(row) == one
    written = json.loads(json.dumps(row))
    assert written == row, "it is JSON as it stands"
    assert Rollout.from_row(written) == one


def test_a_row_is_a_copy() -> None:
    one = rollout()
    row, again = one.to_row(), Rollout.from_row(one.to_row())
    one.turns.append("more")
    one.passage_ids[0].append("p3")
    one.sequence.append_sampled(1, -1.0)
    assert Rollout.from_row(row) == again != one


def text_row(**changes: Any) -> dict[str, Any]:
    row = {name: value for name, value in rollout().to_row().items() if name not in ID_COLUMNS}
    return {**row, **changes}


def test_a_row_of_text_is_read_and_its_ids_are_refused() -> None:
    one = Rollout.from_row(text_row(split="train", advantage=0.5))
    assert (one.question, one.reward, one.turns) == (
        rollout().question,
        rollout().reward,
        rollout().turns,
    )
    assert one.to_row() == text_row(), "and it is written without ids"
    assert one == copy.deepcopy(one) != rollout()
    for name in ("prompt_ids", "response_ids", "loss_mask", "logprobs", "versions", "turn_ids"):
        with pytest.raises(ValueError, match=r"token ids for its .+ to be read, got text"):
            getattr(one.sequence, name)
    with pytest.raises(ValueError, match="got text alone"):
        one.sequence.append_sampled(1, -1.0)
    assert "TextOnly" in repr(one)


def test_a_row_may_leave_out_what_has_a_default() -> None:
    needed = ("question_id", "question", "answers", "turns", "results", "reward")
    one = Rollout.from_row({name: value for name, value in text_row().items() if name in needed})
    assert one.question.metadata == {}
    assert (one.reward.em, one.reward.format_error, one.seed, one.queries) == (0.0, None, None, [])


def test_a_row_that_lacks_something_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have question, answers, .*; got question_id$"):
        Rollout.from_row({"question_id": "q"})
    with pytest.raises(ValueError, match=r"must have loss_mask, logprobs beside its token ids"):
        Rollout.from_row(text_row(prompt_ids=[1], response_ids=[2], loss_mask=None))
    row = rollout().to_row()
    row["logprobs"].pop()
    with pytest.raises(ValueError, match="one length, got 7, 7 and 6"):
        Rollout.from_row(row)

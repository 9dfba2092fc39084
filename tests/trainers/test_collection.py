"""Dynamic sampling: which groups are replaced, by what, and with which seeds."""

from __future__ import annotations

from itertools import combinations

import pytest
from doubles.sample_rollouts import rollout
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents.types import Rollout
from research_rl.envs.types import Question
from research_rl.trainers.algorithms import GRPO, ReinforcePlusPlus
from research_rl.trainers.collect import Collector, check_group_size, most_varied
from research_rl.trainers.settings import Updates

SIZE = 2


def question(name: str) -> Question:
    return Question(name, f"Who is {name} ?", ("Domlor",))


class Players:
    """Answers right and wrong in turn where a question teaches, always right where it does not."""

    def __init__(self, *teaching: str) -> None:
        self.teaching = teaching
        self.asked: list[list[str]] = []
        self.seeds: list[int] = []

    def __call__(self, questions: list[Question], seeds: list[int]) -> list[Rollout]:
        self.asked.append([q.id for q in questions])
        self.seeds += seeds
        found = []
        for i, asked in enumerate(questions):
            wrong = asked.id in self.teaching and i % SIZE == 1
            one = rollout("wrong" if wrong else "right")
            one.question = asked
            found.append(one)
        return found


def names(rollouts: list[Rollout]) -> list[str]:
    return [r.question.id for r in rollouts]


def test_without_rounds_nothing_is_replaced() -> None:
    play = Players()
    collect = Collector(play, SIZE, 0, seed=1)
    assert names(collect([question("a"), question("b")], 0, [question("c")])) == list("aabb")
    assert collect.num_sampled == 4
    assert len(set(play.seeds)) == 4


def test_a_constant_group_makes_room_and_the_others_stay() -> None:
    play = Players("b", "c")
    collect = Collector(play, SIZE, 3, seed=1)
    rollouts = collect([question("a"), question("b")], 0, [question("c")])
    assert names(rollouts) == list("ccbb")
    assert play.asked == [list("aabb"), list("cc")], "one round was enough"
    assert collect.num_sampled == 6
    assert [r.seed for r in rollouts] == [*play.seeds[4:], *play.seeds[2:4]]


def test_what_is_constant_after_the_last_round_stays() -> None:
    play = Players()
    collect = Collector(play, SIZE, 2, seed=1)
    assert names(collect([question("a")], 0, [question("b")])) == list("bb")
    assert len(play.asked) == 3
    assert collect.num_sampled == 6
    assert len(set(play.seeds)) == 6, "the same question again is answered anew"


def test_a_question_drawn_twice_is_not_answered_twice_alike() -> None:
    play = Players()
    Collector(play, SIZE, 1, seed=1)([question("a"), question("b")], 0, [question("c")])
    assert play.asked[1] == list("cccc")
    assert len(set(play.seeds)) == 8


def test_draws_depend_on_seed_and_iteration_alone() -> None:
    pool = [question(str(i)) for i in range(50)]

    def drawn(seed: int, iteration: int) -> list[str]:
        return names(Collector(Players(), SIZE, 1, seed)([question("a")] * 3, iteration, pool))

    assert drawn(1, 0) == drawn(1, 0)
    assert len({tuple(drawn(*key)) for key in ((1, 0), (1, 1), (2, 0))}) == 3


def test_groups_of_one_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="resample_rounds must be 0 with a group_size of 1, got 2"):
        Collector(Players(), 1, 2, seed=1)


def variance(values: tuple[float, ...]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def test_down_sampling_keeps_both_ends() -> None:
    values = [0.0, 0.0, 1.0, 0.0, 0.1, 0.3]
    assert most_varied(values, 6, 2) == [0, 2]
    assert most_varied(values, 6, 3) == [0, 1, 2]
    assert most_varied(values, 6, 6) == list(range(6))
    assert most_varied(values, 6, None) == list(range(6))


def test_each_group_is_thinned_by_itself() -> None:
    assert most_varied([0.0, 0.5, 1.0, 1.0, 1.0, 0.0], 3, 2) == [0, 2, 3, 5]


def test_what_the_loss_leaves_out_fills_a_group_and_no_more() -> None:
    values = [0.0, *[0.1] * 6, 1.0]
    assert most_varied(values, 8, 2) == [0, 7]
    assert most_varied(values, 8, 2, unread={0}) == [1, 7]
    assert most_varied(values, 8, 3, unread=range(7)) == [0, 1, 7]


@given(
    st.lists(
        st.sampled_from([0.0, 0.1, 0.4, 2 / 3, 1.0]) | st.floats(-2, 2), min_size=2, max_size=8
    ),
    st.data(),
)
def test_no_choice_varies_more(values: list[float], data: st.DataObject) -> None:
    number = data.draw(st.integers(2, len(values)))
    unread = data.draw(st.sets(st.integers(0, len(values) - 1)))
    kept = most_varied(values, len(values), number, unread)
    assert len(set(kept)) == number
    assert kept == sorted(kept)
    read = [value for row, value in enumerate(values) if row not in unread]
    chosen = tuple(values[row] for row in kept if row not in unread)
    assert len(chosen) == min(number, len(read))
    if len(read) >= number < len(values):
        best = max(variance(choice) for choice in combinations(read, number))
        assert variance(chosen) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("number", [1, 5])
def test_how_many_may_be_kept(number: int) -> None:
    with pytest.raises(
        ValueError, match=f"downsample_to must be null or from 2 to .* 4, got {number}"
    ):
        Updates(group_size=4, downsample_to=number)


def test_what_compares_no_group_is_not_thinned() -> None:
    updates = Updates(group_size=4, downsample_to=2)
    check_group_size(updates, GRPO())
    with pytest.raises(
        ValueError, match="downsample_to must be null with ReinforcePlusPlus, got 2"
    ):
        check_group_size(updates, ReinforcePlusPlus())


def test_a_minibatch_needs_rollouts_that_are_learned_from() -> None:
    Updates(group_size=4, num_minibatches=4).check_rollouts(1)
    with pytest.raises(ValueError, match=r"at most 2, the number of rollouts .* or downsample_to"):
        Updates(group_size=4, num_minibatches=4, downsample_to=2).check_rollouts(1)

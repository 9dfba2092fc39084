"""Dynamic sampling: which groups are replaced, by what, and with which seeds."""

from __future__ import annotations

import pytest
from doubles.sample_rollouts import rollout

from research_rl.agents.types import Rollout
from research_rl.envs.types import Question
from research_rl.trainers.collect import Collector

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

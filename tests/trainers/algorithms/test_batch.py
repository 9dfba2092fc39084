"""Rollouts become tensors without losing a token, and rows can be dealt and cut at will."""

from __future__ import annotations

import pytest
import torch

from research_rl.agents.types import Rollout, Sequence
from research_rl.envs.types import Question, Reward
from research_rl.trainers.algorithms.batch import Batch

PAD = 99


def rollout(name: str, reward: float, written: int, given: int = 0, prompt: int = 2) -> Rollout:
    """A rollout of ``written`` sampled tokens, then ``given`` result tokens."""
    sequence = Sequence(list(range(prompt)))
    for token in range(written):
        sequence.append_sampled(10 + token, -0.5 - token)
    sequence.append_given([50] * given)
    question = Question(name, f"Who is {name}?", ("nobody",))
    return Rollout(question, sequence, Reward(reward), ["turn"], [])


@pytest.fixture
def batch() -> Batch:
    rows = [("a", 1.0, 3), ("b", 0.0, 5), ("a", 0.5, 1), ("b", 0.25, 2), ("a", 0.0, 4)]
    return Batch.from_rollouts([rollout(*row) for row in rows], PAD)


def test_columns_speak_about_the_next_token() -> None:
    batch = Batch.from_rollouts([rollout("a", 1.0, 2, given=1), rollout("a", 0.0, 1)], PAD)
    assert batch.input_ids.tolist() == [[0, 1, 10, 11, 50], [0, 1, 10, PAD, PAD]]
    assert batch.attention_mask.sum(1).tolist() == [5, 3]
    assert batch.loss_mask.tolist() == [[False, True, True, False], [False, True, False, False]]
    assert batch.sampled_logprobs.tolist() == [[0.0, -0.5, -1.5, 0.0], [0.0, -0.5, 0.0, 0.0]]
    assert batch.rewards.tolist() == [1.0, 0.0]
    assert batch.input_ids[:, 1:][batch.loss_mask].tolist() == [10, 11, 10]


def test_groups_are_the_questions_wherever_they_stand(batch: Batch) -> None:
    assert batch.groups.tolist() == [0, 1, 0, 1, 0]


def test_an_empty_response_is_a_row_without_loss() -> None:
    batch = Batch.from_rollouts([rollout("a", 0.0, 0), rollout("a", 1.0, 2)], PAD)
    assert batch.loss_mask.sum(1).tolist() == [0, 2]


def test_a_truncated_rollout_can_be_left_out_of_the_loss() -> None:
    whole, cut = rollout("a", 1.0, 2), rollout("a", 0.0, 3)
    cut.finish_reason = "length"
    assert Batch.from_rollouts([whole, cut], PAD).loss_mask.sum(1).tolist() == [2, 3]
    batch = Batch.from_rollouts([whole, cut], PAD, mask_truncated=True)
    assert batch.loss_mask.sum(1).tolist() == [2, 0]
    assert batch.rewards.tolist() == [1.0, 0.0]  # the group still compares with it
    assert int(batch.num_tokens) == 2


def test_no_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one rollout"):
        Batch.from_rollouts([], PAD)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_minibatches_deal_each_row_once(batch: Batch, number: int) -> None:
    parts = list(batch.minibatches(number, seed=1))
    assert len(parts) == number
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    rewards = sorted(torch.cat([part.rewards for part in parts]).tolist())
    assert rewards == sorted(batch.rewards.tolist())
    again = list(batch.minibatches(number, seed=1))
    assert all(torch.equal(x.rewards, y.rewards) for x, y in zip(parts, again, strict=True))


def test_minibatches_count_what_they_hold(batch: Batch) -> None:
    parts = list(batch.minibatches(2, seed=1, mean=lambda value: value / 2))  # of two ranks
    for part in parts:
        assert float(part.num_tokens) == float(part.loss_mask.sum()) / 2
        assert float(part.num_rows) == len(part) / 2
    assert float(batch.num_rows) == 5.0


def test_more_minibatches_than_rows_are_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="num_minibatches must be at most 5"):
        list(batch.minibatches(6))


def test_trim_drops_padding_and_nothing_else(batch: Batch) -> None:
    batch.advantages = torch.ones_like(batch.sampled_logprobs)
    short = batch[torch.tensor([2, 3])].trim()
    assert short.input_ids.tolist() == [[0, 1, 10, PAD], [0, 1, 10, 11]]
    assert short.loss_mask.shape == short.advantages.shape == (2, 3)
    assert short.rewards.tolist() == [0.5, 0.25]


def test_rows_keep_the_counts_of_their_step_and_what_was_set(batch: Batch) -> None:
    row = batch[torch.tensor([2])]
    assert (float(row.num_tokens), float(row.num_rows)) == (15.0, 5.0)
    assert row.old_logprobs is None
    assert not hasattr(row, "advantages")
    batch.old_logprobs = batch.sampled_logprobs.clone()
    assert batch[torch.tensor([2])].old_logprobs is not None


def test_counts_are_means_over_ranks(batch: Batch) -> None:
    batch.count(lambda value: (value + 25) / 2)  # the other rank has 25 tokens, or rows
    assert (float(batch.num_tokens), float(batch.num_rows)) == (20.0, 15.0)

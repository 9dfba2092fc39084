"""What travels inside the trainer: B rollouts as padded tensors of L tokens; T = L - 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from research_rl.agents import Rollout


def mean_of_one_rank(value: Tensor) -> Tensor:
    """Return the value: the mean over the ranks of a single process."""
    return value


@dataclass
class Batch:
    """Rollouts, right-padded; column t of a (B, T) tensor speaks about ``input_ids[:, t + 1]``.

    What is set after construction: ``old_logprobs`` where a batch is used for several updates,
    ``ref_logprobs`` and ``values`` where the algorithm needs them, ``turn_rewards`` and
    ``turn_valued`` where turns have a credit of their own, ``advantages`` once per batch,
    ``weights``, ``num_tokens`` and ``num_rows`` once per minibatch.
    """

    input_ids: Tensor  # (B, L) long
    attention_mask: Tensor  # (B, L) bool
    loss_mask: Tensor  # (B, T) bool, True on the tokens that the policy wrote
    sampled_logprobs: Tensor  # (B, T) as the engine reported them
    rewards: Tensor  # (B,)
    groups: Tensor  # (B,) long, equal where the question is the same
    turns: Tensor = field(init=False)  # (B, T) long, the turn of a loss token; -1 elsewhere
    old_logprobs: Tensor | None = field(init=False, default=None)  # (B, T)
    ref_logprobs: Tensor | None = field(init=False, default=None)  # (B, T)
    values: Tensor | None = field(init=False, default=None)  # (B, T)
    returns: Tensor | None = field(init=False, default=None)  # (B, T)
    turn_rewards: Tensor | None = field(init=False, default=None)  # (B, T) on a turn's tokens
    turn_valued: Tensor | None = field(init=False, default=None)  # (B, T) bool, those that have one
    advantages: Tensor = field(init=False)  # (B, T)
    weights: Tensor = field(init=False)  # (B, T) share of each token in the loss
    num_tokens: Tensor = field(init=False)  # () loss tokens of an optimizer step, mean over ranks
    num_rows: Tensor = field(init=False)  # () rollouts of an optimizer step, mean over ranks

    def __post_init__(self) -> None:
        self.turns = _turns(self.loss_mask)
        self.count()

    @classmethod
    def from_rollouts(
        cls, rollouts: Sequence[Rollout], pad_id: int, mask_truncated: bool = False
    ) -> Batch:
        """Pad rollouts on the right; those of one question (same id and text) are one group.

        Args:
            rollouts: at least one.
            pad_id: fills up the rows.
            mask_truncated: give rollouts that ran out of tokens an empty loss mask.

        Raises:
            ValueError: there is no rollout.
        """
        if not rollouts:
            raise ValueError("a batch must hold at least one rollout, got none")
        sequences = [rollout.sequence for rollout in rollouts]
        ids = [s.prompt_ids + s.response_ids for s in sequences]
        given = [len(s.prompt_ids) - 1 for s in sequences]
        masks = [[False] * n + s.loss_mask for n, s in zip(given, sequences, strict=True)]
        if mask_truncated:
            for mask, rollout in zip(masks, rollouts, strict=True):
                if rollout.finish_reason == "length":
                    mask[:] = [False] * len(mask)
        logprobs = [[0.0] * n + s.logprobs for n, s in zip(given, sequences, strict=True)]
        keys: dict[Hashable, int] = {}
        questions = [(r.question.id, r.question.text) for r in rollouts]
        return cls(
            input_ids=_pad(ids, pad_id, torch.long),
            attention_mask=_pad([[True] * len(row) for row in ids], False, torch.bool),
            loss_mask=_pad(masks, False, torch.bool),
            sampled_logprobs=_pad(logprobs, 0.0, torch.float32),
            rewards=torch.tensor([r.reward.value for r in rollouts], dtype=torch.float32),
            groups=torch.tensor([keys.setdefault(key, len(keys)) for key in questions]),
        )

    def set_turn_rewards(self, rewards: Sequence[Sequence[float | None]]) -> None:
        """Give every loss token the reward of its turn.

        Args:
            rewards: one number for each turn of each rollout, None where a turn is not valued;
                turns without tokens are skipped.

        Raises:
            ValueError: a rollout has more turns than numbers, or a number is not one.
        """
        for number, given in enumerate(rewards):
            if any(value is not None and math.isnan(value) for value in given):
                raise ValueError(
                    f"turn rewards of rollout {number} must be numbers, got nan; a credit must "
                    "give None for a turn that it does not value"
                )
        width = max([int(self.turns.max()) + 1, 1, *map(len, rewards)])
        if bool((self.turns.amax(1).cpu() >= torch.tensor([len(row) for row in rewards])).any()):
            raise ValueError("turn rewards must hold a number for each turn, got fewer than turns")
        named = [[math.nan if value is None else value for value in row] for row in rewards]
        filled = [[*row, *[math.nan] * (width - len(row))] for row in named]
        table = torch.tensor(filled, dtype=torch.float32).to(self.turns.device)
        values = table.gather(1, self.turns.clamp(min=0))
        self.turn_valued = self.loss_mask & ~values.isnan()
        self.turn_rewards = values.masked_fill(~self.turn_valued, 0.0)

    def leave_out(self, rows: Sequence[int]) -> None:
        """Take rollouts out of the loss; their rewards still count for their groups."""
        if rows:
            self.loss_mask[list(rows)] = False
            self.turns = _turns(self.loss_mask)
            self.count()

    def __len__(self) -> int:
        """Return B."""
        return len(self.input_ids)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Return some rows; the counts stay those of the whole optimizer step."""
        return self._map(lambda value: value[index] if value.ndim else value)

    def blank(self) -> Batch:
        """Return one row without loss tokens: what a rank runs that is done before the others."""
        row = self[:1]
        row.loss_mask, row.turns = torch.zeros_like(row.loss_mask), torch.full_like(row.turns, -1)
        row.weights, row.advantages = torch.zeros_like(row.weights), torch.zeros_like(row.weights)
        return row

    def tokens(self, rows: Tensor, columns: Tensor) -> Batch:
        """Return some tokens as rows of their own, with one column each.

        Args:
            rows: (N,).
            columns: (N,) of a (B, T) tensor.
        """
        width = self.loss_mask.shape[1]

        def cut(value: Tensor) -> Tensor:
            if value.ndim < 2:
                return value[rows] if value.ndim else value
            if value.shape[1] == width:
                return value[rows, columns][:, None]
            return torch.stack((value[rows, columns], value[rows, columns + 1]), 1)

        return self._map(cut)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return self._map(lambda value: value.to(device))

    def count(self, mean: Callable[[Tensor], Tensor] = mean_of_one_rank) -> None:
        """Count loss tokens and rows: what the loss of this optimizer step is divided by.

        Args:
            mean: the mean of a scalar over the ranks. Data-parallel training averages gradients,
                so a sum over every rank's tokens divided by this mean is the global token mean.
        """
        self.num_tokens = mean(self.loss_mask.sum().float()).clamp(min=1)
        self.num_rows = mean(self.rewards.new_tensor(float(len(self))))

    @property
    def lengths(self) -> Tensor:
        """Tokens of each rollout without padding, (B,)."""
        return self.attention_mask.sum(1)

    def trim(self) -> Batch:
        """Return the batch without the columns in which every row is padding."""
        length = int(self.lengths.max())
        total = self.input_ids.shape[1]

        def cut(value: Tensor) -> Tensor:
            if value.ndim < 2:
                return value
            return value[:, : length - (total - value.shape[1])]

        return self._map(cut)

    def minibatches(
        self,
        number: int,
        seed: int | None = None,
        mean: Callable[[Tensor], Tensor] = mean_of_one_rank,
    ) -> Iterator[Batch]:
        """Deal the rows into equal parts, one for each optimizer step, with counts of their own.

        Args:
            number: how many; sizes differ by at most one row.
            seed: shuffle the rows first; None keeps their order.
            mean: of a scalar over the ranks; see ``count``.

        Raises:
            ValueError: there are fewer rows than parts.
        """
        if number > len(self):
            raise ValueError(
                f"num_minibatches must be at most {len(self)}, the number of rollouts, got "
                f"{number}; lower it, or raise batch_size or group_size"
            )
        order = torch.arange(len(self))
        if seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for index in order.tensor_split(number):
            part = self[index.to(self.input_ids.device)]
            part.count(mean)
            yield part

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        other = object.__new__(Batch)
        for item in fields(self):
            value: Any = getattr(self, item.name, None)
            if value is not None or item.default is None:
                setattr(other, item.name, None if value is None else function(value))
        return other


def _turns(mask: Tensor) -> Tensor:
    """Number each row's runs of True from 0, and put -1 between them."""
    begins = mask.clone()
    begins[:, 1:] &= ~mask[:, :-1]
    return (begins.cumsum(1) - 1).masked_fill(~mask, -1)


def _pad(rows: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> Tensor:
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=fill)

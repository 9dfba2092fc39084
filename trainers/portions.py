"""Which rollouts run together: portions that fit in memory, the largest first."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from research_rl.trainers.algorithms import Batch


def packed_portions(batch: Batch, rows: int | None, tokens: int | None) -> list[Tensor]:
    """Return row indices of portions without padding; a group's prompt counts once in each.

    Groups stay together where they fit, so that their prompt is read once. The largest portion
    comes first: if memory does not suffice, the first pass says so.

    Args:
        batch: the rollouts.
        rows: at most this many in a portion; None is no limit.
        tokens: at most this many tokens; a rollout that is longer stands alone. None is no limit.
    """
    room = (rows or len(batch), tokens or 1 << 62)
    pieces = [piece for group in _groups(batch) for piece in _split(group, room)]
    bins: list[tuple[int, list[int]]] = []  # tokens, rows
    for cost, members in sorted(pieces, key=lambda piece: (-piece[0], piece[1])):
        for place, (used, held) in enumerate(bins):
            if used + cost <= room[1] and len(held) + len(members) <= room[0]:
                bins[place] = (used + cost, held + members)
                break
        else:
            bins.append((cost, members))
    bins.sort(key=lambda item: -item[0])
    return [torch.tensor(held, device=batch.input_ids.device) for _, held in bins]


def _groups(batch: Batch) -> list[list[tuple[int, int, int]]]:
    """Rows of each group, longest first: (response tokens, prompt tokens, row)."""
    written = batch.loss_mask.cpu()
    columns = torch.arange(written.shape[1]) + 1
    first = torch.where(written, columns, written.shape[1] + 1).amin(1)
    last = torch.where(written, columns, 0).amax(1)
    prompts = torch.where(last > 0, first, 0).tolist()
    responses = (last - first).clamp(min=0).tolist()
    groups = defaultdict[int, list[tuple[int, int, int]]](list)
    for row, group in enumerate(batch.groups.tolist()):
        groups[group].append((responses[row], prompts[row], row))
    return [sorted(group, key=lambda item: (-item[0], item[2])) for group in groups.values()]


def _split(group: list[tuple[int, int, int]], room: tuple[int, int]) -> list[tuple[int, list[int]]]:
    """Cut a group into pieces that fit, each with its cost in tokens."""
    pieces: list[tuple[int, list[int]]] = []
    for response, prompt, row in group:
        if pieces:
            used, held = pieces[-1]
            if used + response <= room[1] and len(held) < room[0]:
                pieces[-1] = (used + response, [*held, row])
                continue
        pieces.append((prompt + response, [row]))
    return pieces

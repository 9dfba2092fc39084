"""Weights of a fusion, tuned on questions whose supporting passages are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research_rl.envs.retrieval.search.cache import Ranking
from research_rl.envs.retrieval.search.fusion import fused_places

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Weights of the first of two rankings that are tried; the second has the rest."""


@dataclass(frozen=True)
class TunedWeights:
    """What tuning has found, on questions that the weights were not chosen by.

    Args:
        weights: of the two rankings.
        recall: share of the supporting passages among the first ``k`` with these weights.
        equal: the same with equal weights.
        members: the same of each ranking alone.
        low, high: the 95 % bootstrap interval of ``recall`` minus that of the better ranking alone.
        k: passages that count.
        questions: on which this was measured; as many others chose the weights.
    """

    weights: tuple[float, float]
    recall: float
    equal: float
    members: tuple[float, float]
    low: float
    high: float
    k: int
    questions: int

    @property
    def worth_it(self) -> bool:
        """Whether the fusion is surely ahead of its better part."""
        return self.low > 0


def tune_weights(
    rankings: Sequence[tuple[Ranking, Ranking]],
    gold: Sequence[set[int]],
    k: int = 5,
    constant: int = 60,
    resamples: int = 10_000,
) -> TunedWeights:
    """Choose weights by every second question, and measure them on the others.

    Weights are equal unless others are better on the questions that choose.

    Args:
        rankings: of each question the two rankings that are fused, as long as fused.
        gold: of each question the positions of its supporting passages, at least one.
        k: passages that count.
        constant: of the fusion.
        resamples: of the bootstrap.

    Raises:
        ValueError: there are fewer than 20 questions.
    """
    if len(rankings) != len(gold) or len(gold) < 20:
        raise ValueError(
            f"weights must be tuned on at least 20 questions with supporting passages, got "
            f"{len(gold)}"
        )

    def recalls(first: float, rows: range) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        weights = (first, 1 - first)
        found = (fused_places(rankings[row], weights, constant)[0][:k] for row in rows)
        return np.array(
            [len(gold[row] & set(f)) / len(gold[row]) for row, f in zip(rows, found, strict=True)]
        )

    chooses, measures = range(0, len(gold), 2), range(1, len(gold), 2)
    by_share = {share: float(recalls(share, chooses).mean()) for share in SHARES}
    best = max(SHARES, key=lambda share: (by_share[share], -abs(share - 0.5)))
    ours, equal = recalls(best, measures), recalls(0.5, measures)
    alone = [
        np.array([len(gold[r] & set(rankings[r][i][0][:k])) / len(gold[r]) for r in measures])
        for i in (0, 1)
    ]
    ahead = ours - max(alone, key=lambda one: float(one.mean()))
    drawn = np.random.default_rng(0).integers(0, len(ahead), (resamples, len(ahead)))
    low, high = np.quantile(ahead[drawn].mean(axis=1), [0.025, 0.975])
    return TunedWeights(
        weights=(best, round(1 - best, 2)),
        recall=float(ours.mean()),
        equal=float(equal.mean()),
        members=(float(alone[0].mean()), float(alone[1].mean())),
        low=float(low),
        high=float(high),
        k=k,
        questions=len(ours),
    )

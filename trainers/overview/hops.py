"""Questions by their number of hops: what a mean over all of them hides.

A run whose F1 rose from 0.21 to 0.67 may have lost all its 3-hop questions on the way.
``lost_hops(run)`` names such a number of hops, with its F1 before and now.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from research_rl.envs.questions import known_hops
from research_rl.trainers.overview.folder import RunFolder, texts

FEWEST = 5
"""Of fewer questions with a number of hops nothing is said: one answer would decide."""
_HALF, _WORTH = 0.5, 0.1
_NAME = re.compile(r"val/f1_(\d{1,2})hop")


class HopCurve(NamedTuple):
    """F1 of the validation questions with so many hops.

    Args:
        hops: of these questions.
        points: step and F1, in order of steps.
        searches: a question, at the latest validation; None where it was not logged.
    """

    hops: int
    points: list[tuple[int, float]]
    searches: float | None

    @property
    def name(self) -> str:
        """``1 hop`` or ``3 hops``."""
        return f"{self.hops} hop{'s' * (self.hops != 1)}"


def hop_curves(run: RunFolder) -> list[HopCurve]:
    """Return the curve of each number of hops that the validations logged, fewest hops first."""
    found = {int(m[1]): name for name in run.curves if (m := _NAME.fullmatch(name))}
    return [
        HopCurve(hops, run.metric(found[hops]), run.last(f"val/searches_{hops}hop"))
        for hops in sorted(found)
        if run.metric(found[hops])
    ]


def lost_hops(run: RunFolder) -> list[tuple[HopCurve, tuple[int, float]]]:
    """Return each number of hops whose F1 fell to less than half, with its best step and F1.

    A number of hops with fewer than ``FEWEST`` questions in the rollouts is passed over.
    """
    found = []
    for curve in hop_curves(run):
        best = max(curve.points, key=lambda point: (point[1], -point[0]))
        if best[1] >= _WORTH and curve.points[-1][1] < _HALF * best[1]:
            asked = _asked(run, curve.hops)
            if asked is None or asked >= FEWEST:
                found.append((curve, best))
    return found


def _asked(run: RunFolder, hops: int) -> int | None:
    """How many validation questions have so many hops, None where no rollout says its hops."""
    rows = run.rollouts or RunFolder.read(run.path, begun=False).rollouts
    said = [(row, known_hops(row.get("hops"))) for row in rows if row["split"] == "val"]
    if all(told is None for _, told in said):
        return None
    return len({texts(row["question_id"]) for row, told in said if told == hops})

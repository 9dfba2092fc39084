"""What another reward would change: within groups, because there the advantages come from.

Three rollouts of one question earned 1, 0.1 and 0.1, and would earn 0.8, 0.1 and 0.2: two rewards
change, no order is turned round, and one tie is told apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

_SAME = 1e-9


@dataclass(frozen=True)
class Rescored:
    """One rollout under both rewards.

    Args:
        group: what rollouts of one question in one iteration have in common.
        before: what it was paid.
        after: what it would be paid.
        parts: what each term of a sum would add.
    """

    group: Hashable
    before: float
    after: float
    parts: dict[str, float]


def sign(value: float) -> int:
    """Return -1, 0 or 1; what is as small as rounding is 0."""
    return 0 if abs(value) <= _SAME else 1 if value > 0 else -1


def compared(rollouts: Sequence[Rescored]) -> dict[str, Any]:
    """Return what changes, as counts, means and shares.

    ``groups`` are those of two rollouts or more; of them ``reordered`` hold a pair whose order
    differs (a tie that is told apart, or made, included), ``reversed`` one whose order is turned
    round, ``gained`` have a signal only now, ``lost`` had one only before. ``sign_changed`` is the
    share of rollouts of these groups whose advantage has another sign.

    Args:
        rollouts: at least one.
    """
    groups: dict[Hashable, list[Rescored]] = defaultdict(list)
    for one in rollouts:
        groups[one.group].append(one)
    several = [group for group in groups.values() if len(group) > 1]
    pairs = [list(_pairs(group)) for group in several]
    signs = [moved for group in several for moved in _signs(group)]
    names = dict.fromkeys(name for one in rollouts for name in one.parts)
    return {
        "rollouts": len(rollouts),
        "changed": sum(sign(one.after - one.before) != 0 for one in rollouts),
        "mean_before": fmean(one.before for one in rollouts),
        "mean_after": fmean(one.after for one in rollouts),
        "parts": {n: fmean(one.parts.get(n, 0.0) for one in rollouts) for n in names},
        "groups": len(several),
        "reordered": sum(any(a != b for a, b in each) for each in pairs),
        "reversed": sum(any(a * b < 0 for a, b in each) for each in pairs),
        "gained": sum(all(not a for a, _ in e) and any(b for _, b in e) for e in pairs),
        "lost": sum(any(a for a, _ in e) and all(not b for _, b in e) for e in pairs),
        "with_signal_before": sum(any(a for a, _ in each) for each in pairs),
        "with_signal_after": sum(any(b for _, b in each) for each in pairs),
        "sign_changed": fmean(signs) if signs else 0.0,
    }


def _pairs(group: Sequence[Rescored]) -> Iterable[tuple[int, int]]:
    """The order of every two rollouts, before and after."""
    for one, other in combinations(group, 2):
        yield sign(one.before - other.before), sign(one.after - other.after)


def _signs(group: Sequence[Rescored]) -> Iterable[bool]:
    """Whether the sign of each advantage differs."""
    means = fmean(one.before for one in group), fmean(one.after for one in group)
    for one in group:
        yield sign(one.before - means[0]) != sign(one.after - means[1])


def report_of(name: str, found: dict[str, Any]) -> str:
    """Return a comparison as text."""
    groups, rollouts = found["groups"], found["rollouts"]
    lines = [
        f"{name} on {rollouts} rollouts, {groups} groups of two or more",
        f"rewards      {found['changed']} of {rollouts} change; mean {found['mean_before']:.3f} "
        f"before, {found['mean_after']:.3f} after",
    ]
    if found["parts"]:
        parts = ", ".join(f"{part} {value:+.3f}" for part, value in found["parts"].items())
        lines.append(f"parts        {parts}")
    if groups:
        lines += [
            f"order        changed in {found['reordered']} of {groups} groups "
            f"({found['reordered'] / groups:.0%}), turned round in {found['reversed']}",
            f"signal       in {found['with_signal_before']} groups before, "
            f"{found['with_signal_after']} after; {found['gained']} gain one, {found['lost']} lose "
            "theirs",
            f"advantages   {found['sign_changed']:.0%} of the rollouts change sign",
        ]
    else:
        lines.append("order        no group holds two rollouts, so there is none to compare")
    return "\n".join(lines)

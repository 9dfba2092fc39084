"""Agreement between judges: percent, Cohen's kappa for two, Fleiss' kappa for more.

A verdict is True, False or None; None is a judge's failure, and a case where any compared judge
failed is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Verdicts = Sequence[bool | None]


@dataclass(frozen=True)
class Agreement:
    """How far some judges agree on ``n`` cases; ``left_out`` more lack a verdict.

    Args:
        judges: their names.
        percent: cases on which all say the same, 0 to 100; None where n is 0.
        kappa: agreement beyond chance, 1 is perfect, 0 chance; Cohen's for two judges, Fleiss' for
            more. None where n is 0, or where all verdicts are equal and chance explains them all.
        n: cases that every judge has a verdict on.
        left_out: cases that some judge has none on.
    """

    judges: tuple[str, ...]
    percent: float | None
    kappa: float | None
    n: int
    left_out: int


def agreement_of(verdicts: Mapping[str, Verdicts]) -> Agreement:
    """Return how far all the judges agree.

    Args:
        verdicts: for each judge its verdicts on the same cases, in the same order.

    Raises:
        ValueError: fewer than two judges, or not the same number of cases.
    """
    judges = tuple(verdicts)
    if len(judges) < 2:
        raise ValueError(f"agreement needs at least two judges, got {list(judges)}")
    sizes = {judge: len(given) for judge, given in verdicts.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all judges must have the same cases, got {sizes}")
    cases = list(zip(*verdicts.values(), strict=True))
    whole = [[v for v in case if v is not None] for case in cases if None not in case]
    left_out = len(cases) - len(whole)
    if not whole:
        return Agreement(judges, None, None, 0, left_out)
    percent = 100 * sum(len(set(case)) == 1 for case in whole) / len(whole)
    kappa = cohen_kappa(whole) if len(judges) == 2 else fleiss_kappa(whole)
    return Agreement(judges, percent, kappa, len(whole), left_out)


def pairwise_agreement(verdicts: Mapping[str, Verdicts]) -> list[Agreement]:
    """Return the agreement of every two of the judges; see ``agreement_of``."""
    return [agreement_of({a: verdicts[a], b: verdicts[b]}) for a, b in combinations(verdicts, 2)]


def cohen_kappa(cases: Sequence[Sequence[bool]]) -> float | None:
    """Return Cohen's kappa of cases with two verdicts each; None where it is not defined.

    (observed - expected) / (1 - expected), expected from each judge's own share of True
    (Cohen 1960).
    """
    observed = sum(one == other for one, other in cases) / len(cases)
    first = sum(one for one, _ in cases) / len(cases)
    second = sum(other for _, other in cases) / len(cases)
    return _beyond_chance(observed, first * second + (1 - first) * (1 - second))


def fleiss_kappa(cases: Sequence[Sequence[bool]]) -> float | None:
    """Return Fleiss' kappa of cases with the same number of verdicts; None where it is not defined.

    Observed is the share of agreeing pairs of judges, expected comes from the pooled share of True
    (Fleiss 1971).
    """
    judges = len(cases[0])
    yes = [sum(case) for case in cases]
    pairs = [y * (y - 1) + (judges - y) * (judges - y - 1) for y in yes]
    observed = sum(pairs) / (len(cases) * judges * (judges - 1))
    share = sum(yes) / (len(cases) * judges)
    return _beyond_chance(observed, share**2 + (1 - share) ** 2)


def _beyond_chance(observed: float, expected: float) -> float | None:
    return None if expected >= 1.0 else (observed - expected) / (1 - expected)

"""Documents dealt to train, validation and test, so that few questions span two of them."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

QUESTION_SPLITS = ("train", "val", "test")


def split_documents(
    documents: Iterable[str],
    links: Sequence[tuple[str, ...]],
    shares: Mapping[str, float],
    seed: int = 0,
) -> dict[str, str]:
    """Return the split of each document.

    Test grows from one document to those that are linked to it most, until it has its share, and so
    does validation. What is left is train. A question whose documents lie in two splits is lost, so
    links are cut where there are few.

    Args:
        documents: all of them.
        links: documents that a question may span, each a group.
        shares: of ``val`` and ``test``, 0 to 1.
        seed: decides where the growth begins.

    Raises:
        ValueError: shares that leave nothing for train.
    """
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise ValueError(f"shares of val and test must be 0 or more and below 1, got {shares}")
    names = sorted(set(documents), key=lambda name: _order(name, seed))
    near: dict[str, Counter[str]] = defaultdict(Counter)
    for group in links:
        members = sorted(set(group))
        for one in members:
            near[one].update(other for other in members if other != one)
    # those without any link come last, so that each split has some that questions can be about
    names.sort(key=lambda name: name not in near)
    linked = sum(name in near for name in names)
    dealt: dict[str, str] = {}
    for split in ("test", "val"):
        wanted = round(shares.get(split, 0.0) * linked)
        dealt |= dict.fromkeys(_grown(names[:linked], near, dealt, wanted), split)
        alone = [name for name in names[linked:] if name not in dealt]
        wanted = round(shares.get(split, 0.0) * (len(names) - linked))
        dealt |= dict.fromkeys(alone[:wanted], split)
    return {name: dealt.get(name, "train") for name in sorted(names)}


def _grown(
    names: Sequence[str], near: Mapping[str, Counter[str]], taken: Mapping[str, str], wanted: int
) -> list[str]:
    """Return ``wanted`` documents: next comes the one whose links lead most into what is there."""
    inside: dict[str, None] = {}
    links_in: Counter[str] = Counter()
    heap: list[tuple[float, int, str]] = []
    rank = {name: number for number, name in enumerate(names)}
    starts = iter(names)
    while len(inside) < wanted:
        name = heapq.heappop(heap)[2] if heap else next(starts, None)
        if name is None:
            break
        if name in inside or name in taken:
            continue
        inside[name] = None
        for other, count in near[name].items():
            if other not in inside and other not in taken:
                links_in[other] += count
                share = links_in[other] / near[other].total()
                heapq.heappush(heap, (-share, rank[other], other))
    return list(inside)


def _order(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).hexdigest()

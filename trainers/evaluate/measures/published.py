"""The results that the ReSearch paper published, to be shown beside a run.

Table 2 of arXiv 2503.19470v3: exact match, and the share that an LLM judge (gpt-4o-mini) found
right, in percent.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from research_rl.envs.system import did_you_mean

_RESEARCH = "ReSearch"
BASELINES = {
    "NaiveGeneration": "Naive Generation",
    "NaiveRAG": "Naive RAG",
    "IterRetGen": "Iter-RetGen",
    "IRCoT": "IRCoT",
}
"""What our methods are called in the paper."""
_ALIASES = {"2wiki": "2wikimultihopqa", "2wikimqa": "2wikimultihopqa", "hotpot": "hotpotqa"}


class Published(NamedTuple):
    """One number pair of the table."""

    size: str
    """Of the Qwen2.5 model: 7B or 32B."""
    system: str
    dataset: str
    em: float
    """Exact match, percent."""
    judge: float
    """Found right by the judge, percent."""


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """Return every row of the table."""
    text = (
        files("research_rl.trainers.evaluate.measures").joinpath("published.csv").read_text("utf-8")
    )
    return tuple(
        Published(row["size"], row["system"], row["dataset"], float(row["em"]), float(row["judge"]))
        for row in csv.DictReader(text.splitlines())
    )


def check_system(name: str) -> None:
    """Refuse a system that the paper does not have.

    Raises:
        ValueError: it is unknown; the message lists the known ones.
    """
    known = sorted({row.system for row in published() if row.system.startswith(_RESEARCH)})
    if name not in known:
        hint = did_you_mean(name, known, quoted=True)
        raise ValueError(f"beside must be one of {', '.join(known)}, got {name!r}{hint}")


def beside(system: str, method: str, dataset: str) -> Published | None:
    """Return the paper's figures for a method beside ``system``, None if it has none.

    Args:
        system: a ReSearch model of the paper, as ``ReSearch-Qwen-7B``; baselines are those of its
            size.
        method: class name of a baseline; any other name is the system itself.
        dataset: name of a data set in any of its spellings.
    """
    size = next((row.size for row in published() if row.system == system), "")
    wanted = BASELINES.get(method, system)
    place = _folded(dataset)
    rows = (r for r in published() if r.size == size and r.system == wanted)
    return next((row for row in rows if _folded(row.dataset) == place), None)


def _folded(name: str) -> str:
    """A data set's name without case, punctuation and endings such as ``dev``."""
    bare = re.sub(r"[^a-z0-9]", "", name.casefold())
    bare = re.sub(r"(dev|test|validation|sample|small)+$", "", bare)
    return _ALIASES.get(bare, bare)

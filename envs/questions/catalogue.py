"""The data sets of the paper and its field: where they are, how many questions they publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from research_rl.envs.system import did_you_mean

FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
OTHER = "other"
"""The name of any other data set: nothing is published about it, so no count is checked."""


@dataclass(frozen=True)
class Dataset:
    """What is published about one data set.

    Args:
        name: our name for it, which is FlashRAG's too.
        title: as its paper writes it.
        counts: questions of each split of the official files.
        flashrag: questions of each split of FlashRAG's copy,
            https://github.com/RUC-NLPIR/FlashRAG#datasets .
        home: where the official files are.
        licence: of the questions.
        hub: ``owner/name:config`` on Hugging Face with the original fields, "" if there is none.
        hub_splits: what the Hub calls a split, where it differs.
        sha256: of official files, by name.
        hops: of every question, where all have the same number and the rows do not say so.
    """

    name: str
    title: str
    counts: Mapping[str, int]
    flashrag: Mapping[str, int]
    home: str
    licence: str
    hub: str = ""
    hub_splits: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    hops: int | None = None

    def expected(self, split: str, flashrag: bool) -> int | None:
        """Return the published number of questions of a split, None if nothing is published."""
        return (self.flashrag if flashrag else self.counts).get(split)


_DEV = {"dev": "validation"}
_ALL = (
    Dataset(
        "hotpotqa",
        "HotpotQA",
        counts={"train": 90447, "dev": 7405, "test": 7405},
        flashrag={"train": 90447, "dev": 7405},
        home="https://hotpotqa.github.io",
        licence="CC BY-SA 4.0",
        hub="hotpotqa/hotpot_qa:distractor",
        hub_splits=_DEV,
        # as ParlAI pins them: parlai/tasks/hotpotqa/build.py
        sha256={
            "hotpot_train_v1.1.json": (
                "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316"
            ),
            "hotpot_dev_distractor_v1.json": (
                "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea"
            ),
            "hotpot_dev_fullwiki_v1.json": (
                "2f1f3e594a3066a3084cc57950ca2713c24712adaad03af6ccce18d1846d5618"
            ),
        },
    ),
    Dataset(
        "2wikimultihopqa",
        "2WikiMultihopQA",
        counts={"train": 167454, "dev": 12576, "test": 12576},
        flashrag={"train": 15000, "dev": 12576},
        home="https://github.com/Alab-NII/2wikimultihop",
        licence="Apache-2.0",
    ),
    Dataset(
        "musique",
        "MuSiQue-Ans",
        counts={"train": 19938, "dev": 2417, "test": 2459},
        flashrag={"train": 19938, "dev": 2417},
        home="https://github.com/StonyBrookNLP/musique",
        licence="CC BY 4.0",
        hub="dgslibisey/MuSiQue",
        hub_splits=_DEV,
    ),
    Dataset(
        "bamboogle",
        "Bamboogle",
        counts={"test": 125},
        flashrag={"test": 125},
        home="https://github.com/ofirpress/self-ask",
        licence="MIT",
        hops=2,
    ),
    Dataset(
        "nq",
        "Natural Questions (open)",
        counts={"train": 79168, "dev": 8757, "test": 3610},
        flashrag={"train": 79168, "dev": 8757, "test": 3610},
        home="https://github.com/google-research-datasets/natural-questions",
        licence="CC BY-SA 3.0",
    ),
    Dataset(
        "triviaqa",
        "TriviaQA (open)",
        counts={"train": 78785, "dev": 8837, "test": 11313},
        flashrag={"train": 78785, "dev": 8837, "test": 11313},
        home="https://nlp.cs.washington.edu/triviaqa",
        licence="Apache-2.0",
    ),
    Dataset(
        "popqa",
        "PopQA",
        counts={"test": 14267},
        flashrag={"test": 14267},
        home="https://github.com/AlexTMallen/adaptive-retrieval",
        licence="MIT",
        hub="akariasai/PopQA",
    ),
)
DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _ALL}


def find_dataset(name: str) -> Dataset:
    """Return the data set of this name; ``other`` is one of which nothing is known.

    Raises:
        ValueError: no data set has this name; the message suggests one.
    """
    if name == OTHER:
        return Dataset(OTHER, "other questions", {}, {}, home="", licence="")
    if name in DATASETS:
        return DATASETS[name]
    known = [*DATASETS, OTHER]
    hint = did_you_mean(name.lower(), known, cutoff=0.4)
    raise ValueError(f"no data set {name!r} (known: {', '.join(known)}){hint}")

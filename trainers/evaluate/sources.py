"""Data sets of an evaluation: their questions, and the passages in which answers are searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from research_rl.envs import Question, Retriever
from research_rl.envs.questions import QuestionError, content_hash, read_questions
from research_rl.envs.retrieval.encoders import BM25SketchEncoder
from research_rl.envs.retrieval.index import index_contents, load_retriever, read_manifest
from research_rl.envs.retrieval.search import DenseRetriever
from research_rl.envs.synthetic import WORLD_SPLITS, Split, SyntheticWorld
from research_rl.trainers.audit import ceiling_of
from research_rl.trainers.evaluate.config import DatasetConfig, WorldQuestions
from research_rl.trainers.evaluate.named import one_of


class Source:
    """One data set: its questions are read at once, its retriever is opened at the first use.

    Args:
        name: of the data set.
        config: where its questions and passages are.
        index: what is searched where the data set names no index of its own.
        limit: questions that are asked; None is all.

    Raises:
        QuestionError: the file is not there, a line is bad or an id is used twice.
        IndexFolderError: there is no index in the folder.
        ValueError: the world cannot have such questions.
    """

    def __init__(
        self, name: str, config: DatasetConfig, index: str | Retriever | None, limit: int | None
    ) -> None:
        self.name = name
        self._world: SyntheticWorld | None = None
        whole = self._read(config)
        self.content = content_hash(whole)
        """Hash of all questions of the data set, whatever the limit."""
        self.questions: Sequence[Question] = whole[: config.limit or limit]
        self._whole, self._read_from = whole, config.questions
        self._index = config.index or (None if self._world is not None else index)
        if isinstance(self._index, str):
            read_manifest(self._index)
        self._retriever: Retriever | None = None

    @property
    def has_retriever(self) -> bool:
        """Whether there is anything to search."""
        return self._index is not None or self._world is not None

    @property
    def takes_shared(self) -> bool:
        """Whether the evaluation's own retriever is searched."""
        return isinstance(self._index, Retriever)

    @property
    def place(self) -> Any:
        """What identifies the passages: an index's manifest, the world, or a retriever's class.

        An index that was moved stays the same one. An index of another corpus in the same folder is
        a different one.
        """
        if self._index is None:
            return None if self._world is None else _facts_of(self._world)
        if isinstance(self._index, str):
            return index_contents(self._index)
        return f"{type(self._index).__module__}.{type(self._index).__name__}"

    def retriever(self) -> Retriever:
        """Return the retriever, which is opened at the first call."""
        if self._retriever is None:
            if isinstance(self._index, str):
                self._retriever = load_retriever(self._index)
            elif self._index is not None:
                self._retriever = self._index
            else:
                assert self._world is not None, "check has_retriever first"
                self._retriever = world_retriever(self._world)
        return self._retriever

    def ceiling(self) -> float | None:
        """Return the share of the questions that can be answered from the passages.

        None where no ``research data audit`` has told it for these questions and this index.
        """
        return ceiling_of(self._read_from, self._whole, self.questions, self._index)

    def _read(self, config: DatasetConfig) -> list[Question]:
        if config.world is not None:
            self._world, questions = world_questions(config.world)
        else:
            questions = read_questions(str(config.questions))
        check_ids(self.name, questions)
        return questions


def world_questions(config: WorldQuestions) -> tuple[SyntheticWorld, list[Question]]:
    """Return the world and the questions that a configuration asks for."""
    one_of("world.split", config.split, WORLD_SPLITS)
    world = SyntheticWorld(config.num_people, config.seed, config.alias_share)
    hops = {int(kind): float(share) for kind, share in config.hops.items()}
    split = cast(Split, config.split)
    return world, world.sample(split, hops, config.num_questions, config.question_seed)


def world_retriever(world: SyntheticWorld) -> Retriever:
    """Return an exact index of every fact of the world, in memory, without any weights."""
    dimension = -(-len(world.vocabulary) // 64) * 64  # at least one for each word
    return DenseRetriever.from_passages(world.passages, BM25SketchEncoder(dim=dimension))


def _facts_of(world: SyntheticWorld) -> str:
    """The facts by name, with the aliases; people and seed already show in the questions."""
    aliases = f", {world.alias_share:g} of the people under another name"
    return "the world's facts" + (aliases if world.alias_share else "")


def check_ids(name: str, questions: Sequence[Question]) -> None:
    """Refuse questions that share an id: one of them would be counted for the other.

    Raises:
        QuestionError: an id is used twice.
    """
    seen: dict[str, int] = {}
    for number, question in enumerate(questions, 1):
        if question.id in seen:
            first = seen[question.id]
            raise QuestionError(
                name, None, f"id {question.id!r} of question {number} is that of question {first}"
            )
        seen[question.id] = number

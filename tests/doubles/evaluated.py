"""An evaluation in miniature: methods without a model, rows made by hand."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from research_rl.agents.methods.generators import Generation, Generator, ModelInput
from research_rl.agents.methods.research import Agent, Message, Prediction
from research_rl.agents.types import ModelUnavailable, SamplingParams
from research_rl.envs.protocols import Protocol
from research_rl.envs.types import Passage, Question, Retriever
from research_rl.trainers.evaluate.measures.rows import Cell, Row, row_of


class Oracle(Agent):
    """Knows a share of the answers, the same ones every time; notes whom it was asked about.

    Args:
        generator: not used.
        retriever: asked once a question.
        knows: of ten questions, how many it answers rightly.
        top_k: passages of a search.
    """

    asked: ClassVar[list[str]] = []
    stop_after: ClassVar[int | None] = None
    seconds: ClassVar[float] = 0.0

    def __init__(
        self, generator: Generator, retriever: Retriever, knows: int = 5, top_k: int = 5
    ) -> None:
        self.retriever, self.knows, self.top_k = retriever, knows, top_k

    def answer(self, questions: Sequence[Question]) -> list[Prediction]:
        """See Agent.answer."""
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        self.asked.extend(question.id for question in questions)
        found = self.retriever.search([q.text for q in questions], self.top_k)
        return [
            predicted(q, q.answers[0] if number_of(q) % 10 < self.knows else "nobody", tuple(f))
            for q, f in zip(questions, found, strict=True)
        ]


class Fails(Oracle):
    """Has no answer to some questions, as a server that stalls; ``failing`` names them."""

    failing: ClassVar[set[str]] = set()
    raises: ClassVar[bool] = False

    def answer(self, questions: Sequence[Question]) -> list[Prediction]:
        """See Agent.answer."""
        if self.raises and all(question.id in self.failing for question in questions):
            raise ModelUnavailable("every request is refused")
        return [
            Prediction(p.question, "", finish_reason="error", error="timed out")
            if p.question.id in self.failing
            else p
            for p in super().answer(questions)
        ]


class Told(Oracle):
    """Is told in which protocol and with which prompt it is asked, and asks as it likes."""

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever,
        protocol: str | Protocol = "research",
        prompt: str = "base",
    ) -> None:
        super().__init__(generator, retriever)


class Says(Generator):
    """A judge or a model that always says the same; counts its calls.

    Args:
        reply: what it says; None fails.
        model: what it is called; None has no name of its own.
    """

    def __init__(self, reply: str | None = None, model: str | None = None) -> None:
        self.reply, self.calls, self.lock = reply, 0, threading.Lock()
        if model is not None:
            self.model = model

    def generate(
        self,
        inputs: Sequence[ModelInput],
        params: SamplingParams | Sequence[SamplingParams],
        seeds: Sequence[int] | None = None,
    ) -> list[Generation]:
        """See Generator.generate."""
        with self.lock:
            self.calls += len(inputs)
        failed = Generation.failed("connection refused")
        return [Generation(self.reply, "eos") if self.reply else failed for _ in inputs]


def number_of(question: Question) -> int:
    """The number at the end of an id."""
    return int("".join(c for c in question.id if c.isdigit()) or 0)


def predicted(question: Question, text: str, found: tuple[Passage, ...] = ()) -> Prediction:
    """A prediction behind one search."""
    return Prediction(
        question,
        text,
        steps=(
            Message("model", f"<think> hm </think> <search> {question.text} </search>"),
            Message("environment", f" <result>\n{text}\n</result>"),
            Message("model", f"<answer> \\boxed{{{text}}} </answer>"),
        ),
        queries=(question.text,),
        passages=(found or (Passage("p1", "House\nbody"),),),
        finish_reason="answer",
        sampled_tokens=9,
        result_tokens=4,
        seconds=0.25,
    )


def question(number: int, hops: int = 1) -> Question:
    """Question ``number``, which ``Owner number`` answers."""
    return Question(
        f"q{number}",
        f"Who owns house {number}?",
        (f"Owner {number}",),
        {"hops": hops, "gold_ids": ["p1"]},
    )


def row(number: int, right: bool, method: str = "ReSearch", **changes: Any) -> Row:
    """A row about question ``number``."""
    cell = Cell(changes.pop("dataset", "houses"), changes.pop("model", "tiny"), method)
    asked = question(number, changes.pop("hops", 1))
    made = row_of(cell, predicted(asked, asked.answers[0] if right else "nobody"))
    return {**made, **changes}


def question_file(folder: Path, count: int = 20) -> Path:
    """A file of questions in the FlashRAG layout."""
    path = folder / "houses.jsonl"
    rows = [
        {"id": q.id, "question": q.text, "golden_answers": list(q.answers), "metadata": q.metadata}
        for q in (question(i, 1 + i % 2) for i in range(count))
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return path


def arguments(folder: Path, questions: Path, **methods: Any) -> list[str]:
    """Arguments of ``research evaluate`` for a grid without any model."""
    spec = methods or {
        "ReSearch": {"class_path": "doubles.evaluated.Oracle", "init_args": {"knows": 9}},
        "Guess": {"class_path": "doubles.evaluated.Oracle", "init_args": {"knows": 2}},
    }
    config = {
        "datasets": {"houses": {"questions": str(questions)}},
        "models": {"none": {"generator": {"class_path": "doubles.evaluated.Says"}}},
        "methods": spec,
        "index": {"class_path": "doubles.toy_world.Echo"},
        "out": str(folder),
        "batch_size": 4,
        "resamples": 200,
        "closed_book": "Guess" if "Guess" in spec else None,
    }
    return ["--config", json.dumps(config)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What was answered, row by row."""
    lines = (folder / "rows.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def card_of(folder: Path) -> list[list[str]]:
    """The card's table without the one measure that no two runs share."""
    with (folder / "card.csv").open(newline="") as file:
        return [line for line in csv.reader(file) if line[3] != "seconds"]

"""The base class of the baselines: all questions of a batch advance together, round by round.

A round is one call of the generator for all who write and one call of the retriever for all who
search, so a method costs as many calls as it has rounds, however many questions there are.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from research_rl.agents.engines import seed_of
from research_rl.agents.methods.generators import Generation, Generator, ModelInput
from research_rl.agents.methods.research import Agent, Message, Prediction
from research_rl.agents.methods.templates import show
from research_rl.agents.types import SamplingParams
from research_rl.envs import Passage, Question, Retriever, search_checked


@dataclass
class Work:
    """One question on its way to an answer."""

    question: Question
    steps: list[Message] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    passages: list[tuple[Passage, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """What the model wrote, call by call, as far as the method keeps it."""
    answer: str = ""
    finish_reason: str = ""
    """Set where the question is done."""
    sampled_tokens: int = 0
    result_tokens: int = 0
    error: str | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more is to be asked."""
        return self.finish_reason != ""

    def end(self, answer: str, generation: Generation) -> None:
        """Take the answer that a text gives as the last word."""
        self.answer = answer
        length = generation.finish == "length" and not answer
        self.finish_reason = "length" if length else "answer" if answer else "no_answer"

    def prediction(self, seconds: float) -> Prediction:
        """Return what came of it."""
        return Prediction(
            question=self.question,
            text="" if self.error is not None else self.answer,
            steps=tuple(self.steps),
            queries=tuple(self.queries),
            passages=tuple(self.passages),
            finish_reason=self.finish_reason,
            format_error=None if self.answer or self.error is not None else "no answer",
            sampled_tokens=self.sampled_tokens,
            result_tokens=self.result_tokens,
            seconds=seconds,
            error=self.error,
        )


class Baseline(Agent):
    """A method made of prompts: it writes with a generator and reads what a retriever finds.

    Args:
        generator: writes.
        retriever: searches; None where the method does not.
        top_k: passages of a search.
        params: how to sample; ``stop`` is the method's own.
        seed: of sampled texts; each question and round has its own seed made from it.
    """

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever | None,
        top_k: int,
        params: SamplingParams,
        seed: int,
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.generator, self.retriever, self.top_k = generator, retriever, top_k
        self.params, self.seed = params, seed

    def answer(self, questions: Seq[Question]) -> list[Prediction]:
        """See Agent.answer.

        Raises:
            ModelUnavailable: the model's server is gone.
            RetrieverUnavailable: a search failed.
        """
        began = time.perf_counter()
        work = [Work(question) for question in questions]
        self._run(work)
        share = (time.perf_counter() - began) / max(1, len(work))
        return [one.prediction(share) for one in work]

    @abstractmethod
    def _run(self, work: list[Work]) -> None:
        """Bring every question to its end."""

    def _search(self, work: Seq[Work], queries: Seq[str]) -> None:
        """Search once for all; what is found is added to each question's passages."""
        assert self.retriever is not None
        if not work:
            return
        distinct = list(dict.fromkeys(queries))
        found = dict(
            zip(distinct, search_checked(self.retriever, distinct, self.top_k), strict=True)
        )
        for one, query in zip(work, queries, strict=True):
            one.queries.append(query)
            one.passages.append(tuple(found[query]))

    def _write(
        self, work: Seq[Work], inputs: Seq[ModelInput], salt: str
    ) -> list[tuple[Work, Generation]]:
        """Write once for all; those whose generation failed are ended and left out."""
        if not work:
            return []
        seeds = None
        if self.params.temperature > 0:
            seeds = [seed_of(self.seed, one.question.id, salt) for one in work]
        written = []
        for one, text in zip(
            work, self.generator.generate(inputs, self.params, seeds), strict=True
        ):
            one.sampled_tokens += text.tokens
            if text.error is not None:
                one.error, one.finish_reason = text.error, "error"
                continue
            one.steps.append(Message("model", text.text))
            written.append((one, text))
        return written

    def _show(self, one: Work, passages: Seq[Passage]) -> str:
        """Passages as the model reads them, noted as a step of the question."""
        shown = show(passages)
        one.steps.append(Message("environment", shown))
        one.result_tokens += self.generator.count(shown) or 0
        return shown

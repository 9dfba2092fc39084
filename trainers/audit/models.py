"""What a model can do with the questions before it is trained: from memory, and by searching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from research_rl.agents.methods import Agent, Generator, NaiveGeneration, ReSearch
from research_rl.envs import Question, Retriever
from research_rl.envs.rewards import exact_match

_BATCH = 64


@dataclass(frozen=True)
class Tried:
    """What a model answered.

    Args:
        model: its name.
        closed_book: question id -> whether it is right without searching, greedily.
        right: question id -> how many of ``samples`` sampled rollouts with searches are right.
        samples: rollouts a question; 0 if none were sampled.
        errors: answers that the model's server did not give; they count as wrong.
    """

    model: str
    closed_book: Mapping[str, bool]
    right: Mapping[str, int]
    samples: int
    errors: int = 0

    @property
    def pass_at_1(self) -> float:
        """Mean share of right rollouts."""
        return sum(self.right.values()) / (self.samples * len(self.right))

    @property
    def pass_at_k(self) -> float:
        """Share of questions with a right rollout among ``samples``."""
        return sum(map(bool, self.right.values())) / len(self.right)

    @property
    def mixed(self) -> float:
        """Share of questions with right and wrong rollouts: only these teach a group anything."""
        return sum(0 < n < self.samples for n in self.right.values()) / len(self.right)


def try_model(
    name: str,
    generator: Generator,
    questions: Sequence[Question],
    retriever: Retriever,
    k: int = 5,
    samples: int = 0,
    prompt: str = "base",
    max_tokens: int = 1024,
    advance: Callable[[int], object] = lambda _: None,
) -> Tried:
    """Let a model answer from memory, and sample rollouts that search.

    Args:
        name: of the model, for the card.
        generator: writes.
        questions: to be answered.
        retriever: searches.
        k: passages of a search.
        samples: rollouts a question, at temperature 1.
        prompt: ``base`` or ``instruct``.
        max_tokens: of a rollout, results included.
        advance: called with the number of answers that were given.

    Raises:
        ModelUnavailable: a server gives no answer at all.
        RetrieverUnavailable: a search failed.
    """
    plain = "base" if prompt == "base" else "chat"
    closed, errors = _right(NaiveGeneration(generator, prompt=plain), questions, advance)
    right = dict.fromkeys((q.id for q in questions), 0) if samples else {}
    for number in range(samples):
        agent = ReSearch(
            *(generator, retriever, k),
            prompt=prompt,
            max_response_tokens=max_tokens,
            temperature=1.0,
            seed=number,
        )
        try:
            sampled, failed = _right(agent, questions, advance)
        finally:
            agent.close()
        errors += failed
        right = {identity: n + sampled[identity] for identity, n in right.items()}
    return Tried(name, closed, right, samples, errors)


def _right(
    agent: Agent, questions: Sequence[Question], advance: Callable[[int], object]
) -> tuple[dict[str, bool], int]:
    """Return whether each answer is right (exact match), and how many failed."""
    right, errors = {}, 0
    for start in range(0, len(questions), _BATCH):
        for one in agent.answer(questions[start : start + _BATCH]):
            right[one.question.id] = (
                bool(one.text) and exact_match(one.text, one.question.answers) == 1
            )
            errors += one.error is not None
        advance(len(questions[start : start + _BATCH]))
    return right, errors

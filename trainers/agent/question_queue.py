"""A queue of questions from many users to one agent; those that wait are answered together.

A question gets the answer that it would have got alone, up to the rounding of another batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import dataclass

from research_rl.agents import Prediction, SamplingParams
from research_rl.agents.web import JobQueue, QueuedJob
from research_rl.trainers.agent.asker import Asker, Hear, Stretch


@dataclass(frozen=True)
class Inquiry:
    """A question and how it is to be answered.

    Args:
        question: as it is asked.
        params: how to sample; None is as the agent does.
        seed: of sampled texts; None is the agent's.
    """

    question: str
    params: SamplingParams | None = None
    seed: int | None = None


class QuestionQueue(JobQueue[tuple[Inquiry, Hear]]):
    """Takes questions in their order; thread-safe.

    >>> with QuestionQueue(asker) as queue:  # doctest: +SKIP
    ...     queue.submit(Inquiry("Who directed Alien?")).result().text

    Args:
        asker: answers; closed with the queue.
        max_waiting: questions that may wait; further ones are refused.
        max_wait: seconds that a question waits for others to join.
    """

    def __init__(self, asker: Asker, max_waiting: int = 64, max_wait: float = 0.005) -> None:
        super().__init__(max_wait, max_waiting, "question-queue")
        self.asker = asker
        self._gone: set[int] = set()
        self.runs = 0
        """How often questions were played, one or several together."""

    def submit(self, inquiry: Inquiry, hear: Hear = lambda stretch: None) -> Future[Prediction]:
        """Have a question answered.

        Args:
            inquiry: the question.
            hear: hears the episode, in the thread of the queue.

        Raises:
            ValueError: it cannot be played; says what must hold.
            QueueFullError: too many wait already.
        """
        self.asker.check(inquiry.question, inquiry.params)
        job = QueuedJob((inquiry, hear), (inquiry.params, inquiry.seed))
        self._take(job)
        return job.done

    def close(self, finish: bool = True) -> None:
        """See JobQueue."""
        super().close(finish)
        self.asker.close()

    def _give_up(self, row: int) -> None:
        self._gone.add(row)

    def _results(self, jobs: list[QueuedJob[tuple[Inquiry, Hear]]]) -> Seq[Prediction]:
        inquiries, hears = zip(*(job.work for job in jobs), strict=True)
        self._gone.clear()
        with self._under_way(jobs):
            gone = self._gone.__contains__
            told = [_unless_gone(hear, row, self._gone) for row, hear in enumerate(hears)]
            first = inquiries[0]
            questions = [inquiry.question for inquiry in inquiries]
            self.runs += 1
            return self.asker.answer(questions, told, first.params, first.seed, gone)


def _unless_gone(hear: Hear, row: int, gone: set[int]) -> Hear:
    """Hear nothing for those who are gone: what hears may be gone too."""

    def heard(stretch: Stretch) -> None:
        if row not in gone:
            hear(stretch)

    return heard

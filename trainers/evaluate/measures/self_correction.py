"""Self-correction: whether a model searches again after a miss, and with what success.

The needed facts of a question are its supporting paragraphs (``fact_ids``, else ``gold_ids``, else
``supporting_titles``) or, where the question names none, a gold answer that stands in a passage.
The built-in world gives ``fact_ids`` where people have aliases: a passage that only tells another
name helps the next search, but is not the fact itself.

- A **miss** is a search whose result brings no needed fact that was not there before, while one is
  still missing.
- It is **re-queried** if another search follows that asks something new: a query that differs from
  all before in more than case and white space. A following search that asks an old query again is
  a **repeat**.
- A re-query **recovers** if its own result brings a needed fact that was missing. A fact brought
  by a later search is counted as **recovered later**.

One question with the facts A and B: the searches find nothing, A, nothing, and then the model
answers. Two misses; the first is re-queried and recovers, the second is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from research_rl.envs import Passage, Question, passage_title
from research_rl.envs.system import fold_title
from research_rl.trainers.evaluate.measures.answers import fold_query, shown_answer

if TYPE_CHECKING:
    from research_rl.agents import Prediction

_ANSWER = "a gold answer"  # the one needed fact of a question that names no paragraphs


@dataclass(frozen=True)
class SelfCorrection:
    """Counts over one prediction or many; they add up with ``+``.

    Args:
        questions: those whose needed facts are known and that were answered without an error.
        questions_with_miss: those with at least one miss.
        misses: searches that brought nothing needed; see the module.
        requeries: misses followed by a new query.
        repeats: misses followed by an old query.
        recoveries: re-queries whose own result brought a missing fact.
        later_recoveries: re-queries that did not, but a later search did.
    """

    questions: int = 0
    questions_with_miss: int = 0
    misses: int = 0
    requeries: int = 0
    repeats: int = 0
    recoveries: int = 0
    later_recoveries: int = 0

    def __add__(self, other: SelfCorrection) -> SelfCorrection:
        return SelfCorrection(
            self.questions + other.questions,
            self.questions_with_miss + other.questions_with_miss,
            self.misses + other.misses,
            self.requeries + other.requeries,
            self.repeats + other.repeats,
            self.recoveries + other.recoveries,
            self.later_recoveries + other.later_recoveries,
        )

    @property
    def requery_rate(self) -> float | None:
        """Re-queries per miss, 0 to 1; None without a miss."""
        return self.requeries / self.misses if self.misses else None

    @property
    def recovery_rate(self) -> float | None:
        """Recoveries per re-query, 0 to 1; None without a re-query."""
        return self.recoveries / self.requeries if self.requeries else None

    @property
    def eventual_recovery_rate(self) -> float | None:
        """Re-queries after which this or a later search brought a missing fact, 0 to 1."""
        recovered = self.recoveries + self.later_recoveries
        return recovered / self.requeries if self.requeries else None


def self_correction(prediction: Prediction) -> SelfCorrection:
    """Return the counts of one prediction; all 0 where its needed facts are not known."""
    facts = _facts(prediction.question)
    if facts is None or prediction.error is not None:
        return SelfCorrection()
    wanted, present = facts
    news = _news(prediction.passages[: len(prediction.queries)], wanted, present)
    total = SelfCorrection(questions=1, questions_with_miss=int("miss" in news))
    asked = [fold_query(query) for query in prediction.queries]
    for place, kind in enumerate(news):
        if kind == "miss":
            total += _after_miss(place, news, asked)
    return total


def _facts(
    question: Question,
) -> tuple[set[str], Callable[[Sequence[Passage]], set[str]]] | None:
    """The needed facts of a question and how to find them in a result; None if not known."""
    known = question.metadata.get("fact_ids") or question.metadata.get("gold_ids")
    if gold := {str(identity) for identity in known or ()}:
        return gold, lambda passages: {passage.id for passage in passages}
    titles = {fold_title(title) for title in question.metadata.get("supporting_titles") or ()}
    if titles:
        return titles, lambda passages: {passage_title(passage) for passage in passages}
    if shown_answer(question, ()) is None:
        return None

    def answer(passages: Sequence[Passage]) -> set[str]:
        return {_ANSWER} if shown_answer(question, passages) else set()

    return {_ANSWER}, answer


def _news(
    results: Sequence[Sequence[Passage]],
    wanted: set[str],
    present: Callable[[Sequence[Passage]], set[str]],
) -> list[str]:
    """What each search was: "hit" (new and needed), "miss", or "done" (nothing was missing)."""
    kinds, missing = [], set(wanted)
    for passages in results:
        found = present(passages) & missing
        kinds.append("done" if not missing else "hit" if found else "miss")
        missing -= found
    return kinds


def _after_miss(place: int, news: Sequence[str], asked: Sequence[str]) -> SelfCorrection:
    """The counts of the miss at ``place``."""
    if place + 1 >= len(news):
        return SelfCorrection(misses=1)
    if asked[place + 1] in asked[: place + 1]:
        return SelfCorrection(misses=1, repeats=1)
    recovers = news[place + 1] == "hit"
    later = not recovers and "hit" in news[place + 2 :]
    return SelfCorrection(
        misses=1, requeries=1, recoveries=int(recovers), later_recoveries=int(later)
    )

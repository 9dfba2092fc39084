"""A judge in the reward: a served model says whether an answer is right, at a bounded cost.

``"Domlor, the boss"`` is no exact match of ``Domlor``. The judge is asked once, and whoever writes
the same answer to the same question is paid from the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from research_rl.agents.methods import OpenAIGenerator
from research_rl.envs import Question
from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.terms import AnswerTerm, Passages, RewardTerm, says_none
from research_rl.trainers.evaluate.judges.cache import JudgeCache
from research_rl.trainers.evaluate.judges.judge import Chat, Judge, JudgeCase
from research_rl.trainers.evaluate.judges.rows import asked_how, chat_of

log = logging.getLogger(__name__)


class JudgeTerm(RewardTerm):
    """1 for an answer that a served model calls right, else 0.

    A config names it by its class path. Exact matches earn 1 and empty answers 0 without asking.
    Verdicts are cached, in a file if one is named, so that an answer is paid for once; failures are
    not. Where the judge gives no verdict, or may not be asked any more, the answer earns what an
    exact match is worth, 0, and the log says how often.

    Args:
        model: that judges, as its server calls it.
        url: of an OpenAI-compatible server.
        cache: file of the verdicts; None keeps them in memory.
        max_calls: most cases that this process asks about; others count as not judged.
        max_chars: of an answer, from which on it earns 0: a list of answers is no answer, and a
            long text can be written to the judge.
        weight: see RewardTerm.
        chat: sends one conversation, in place of the server.

    Raises:
        ValueError: a limit is below 1, or there is neither a server nor a chat.
    """

    def __init__(
        self,
        model: str,
        url: str | None = None,
        cache: str | None = None,
        max_calls: int = 10_000,
        max_chars: int = 200,
        weight: float = 1.0,
        chat: Chat | None = None,
    ) -> None:
        super().__init__(weight)
        if max_calls < 1 or max_chars < 1:
            raise ValueError(f"limits must be at least 1, got {max_calls} and {max_chars}")
        if chat is None and not url:
            raise ValueError("url must name the judge's server, got none")
        settings: dict[str, object] = {}
        if chat is None:
            generator = OpenAIGenerator(str(url), model)
            chat, settings = chat_of(generator), asked_how(generator)
        self._judge = Judge(model, chat, JudgeCache(cache), concurrency=1, settings=settings)
        self._exact = AnswerTerm("em")
        self.max_calls, self.max_chars = max_calls, max_chars
        self.calls = 0
        """Cases that were asked about."""
        self.unjudged = 0
        """Cases without a verdict, or beyond ``max_calls``."""

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        prediction = self.prediction(segments).strip()
        if question.metadata.get("unanswerable"):
            return float(says_none(prediction, question.answers))
        if not prediction or len(prediction) > self.max_chars:
            return 0.0
        if self._exact.speaking(self.protocol)(segments, question, passages) == 1.0:
            return 1.0
        return self._asked(JudgeCase(question.text, tuple(question.answers), prediction))

    def _asked(self, case: JudgeCase) -> float:
        known = self._judge.cache.get(self._judge.key(case))
        if known is not None:
            return float(known.correct)
        if self.calls >= self.max_calls:
            return self._without(f"max_calls of {self.max_calls} is used")
        self.calls += 1
        (verdict,) = self._judge.judge([case])
        if verdict.correct is None:
            return self._without(verdict.error or "no verdict")
        return float(verdict.correct)

    def _without(self, reason: str) -> float:
        self.unjudged += 1
        if self.unjudged & (self.unjudged - 1) == 0:  # 1, 2, 4, 8, ...
            log.warning(
                "judge %s: %d answers without a verdict so far, which earn 0: %s",
                self._judge.model,
                self.unjudged,
                reason,
            )
        return 0.0

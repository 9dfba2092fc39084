"""A language model as judge of answers.

The prompt is the paper's (ReSearch, arXiv 2503.19470; its code judged with gpt-4o-mini at
temperature 0). Where the judge does not reply, or its reply holds no verdict, the case is a
failure: it counts as neither right nor wrong, and the next run asks again.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

from research_rl.agents.methods import Prediction, behind_thoughts
from research_rl.envs.system import progress_bar
from research_rl.trainers.evaluate.judges.cache import JudgeCache, content_key

log = logging.getLogger(__name__)
JudgeMessage = Mapping[str, str]
Chat = Callable[[Sequence[JudgeMessage]], str]
"""Sends one conversation, [{"role", "content"}, ...], and returns the reply; raises OSError,
RuntimeError or ValueError when there is none. It is called from several threads, and does its own
retries."""

PROMPT_VERSION = "research-1"
# byte for byte llm_judge_prompt of scripts/evaluation/llm_judge.py, branch re-search of
# https://github.com/Agent-RL/ReCall (MIT), the space behind ```json included
PROMPT = """\
You will be given a question and its ground truth answer list where each item can be a ground \
truth answer. Provided a pred_answer, you need to judge if the pred_answer correctly answers the \
question based on the ground truth answer list. You should first give your rationale for the \
judgement, and then give your judgement result (i.e., correct or incorrect).

Here is the criteria for the judgement:
1. The pred_answer doesn't need to be exactly the same as any of the ground truth answers, but \
should be semantically same for the question.
2. Each item in the ground truth answer list can be viewed as a ground truth answer for the \
question, and the pred_answer should be semantically same to at least one of them.

question: {question}
ground truth answers: {gt_answer}
pred_answer: {pred_answer}

The output should in the following json format:
```json\x20
{{
    "rationale": "your rationale for the judgement, as a text",
    "judgement": "your judgement result, can only be 'correct' or 'incorrect'"
}}
```

Your output:"""
_AGAIN = (
    'That is not the JSON object asked for. Reply with {"rationale": "...", "judgement": "..."} '
    "alone, where judgement is 'correct' or 'incorrect'."
)
_WORDS = {"correct": True, "incorrect": False}
_FIELD = re.compile(r'"judge?ment"\s*:\s*"\s*(correct|incorrect)\s*"', re.IGNORECASE)


@dataclass(frozen=True)
class JudgeCase:
    """What a judge is shown: a question, every gold answer, and the answer to judge."""

    question: str
    golds: tuple[str, ...]
    prediction: str

    @classmethod
    def of(cls, prediction: Prediction) -> JudgeCase:
        """Return the case of a prediction."""
        question = prediction.question
        return cls(question.text, tuple(question.answers), prediction.text)

    def messages(self) -> list[JudgeMessage]:
        """Return the paper's prompt, filled in; the golds read as a Python list, as there."""
        text = PROMPT.format(
            question=self.question, gt_answer=str(list(self.golds)), pred_answer=self.prediction
        )
        return [{"role": "user", "content": text}]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a case.

    Args:
        correct: its verdict; None is a failure.
        rationale: its reason.
        error: why there is no verdict; None if there is one.
        attempts: how often it was asked, over all for a cached verdict.
        cached: it came from the cache.
    """

    correct: bool | None
    rationale: str = ""
    error: str | None = None
    attempts: int = 0
    cached: bool = False


@dataclass(frozen=True)
class JudgeScore:
    """Share of answers judged correct over the ``n`` that have a verdict; ``failures`` have none.

    ``accuracy`` is 0 to 1, None where n is 0.
    """

    accuracy: float | None
    n: int
    failures: int


class Judge:
    """One judge with its cache.

    Args:
        model: its name; part of the key of a cached verdict.
        chat: sends one conversation, at temperature 0.
        cache: where verdicts are kept; None keeps them for this process alone.
        attempts: how often a case is asked until a reply holds a verdict.
        concurrency: cases asked about at once.
        give_up_after: after this many cases in a row without a reply the judge counts as down,
            and the rest fail without being asked.
        settings: where and how it is asked, ready for JSON; part of the key of a cached verdict.

    Raises:
        ValueError: a number is less than 1.
    """

    def __init__(
        self,
        model: str,
        chat: Chat,
        cache: JudgeCache | None = None,
        attempts: int = 3,
        concurrency: int = 8,
        give_up_after: int = 20,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        numbers = {
            "attempts": attempts,
            "concurrency": concurrency,
            "give_up_after": give_up_after,
        }
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.model, self.chat, self.settings = model, chat, dict(settings or {})
        self.cache = JudgeCache(None) if cache is None else cache
        self.attempts, self.concurrency, self.give_up_after = attempts, concurrency, give_up_after
        self._silences = 0
        self._lock = threading.Lock()

    def judge(self, cases: Sequence[JudgeCase], progress: bool = False) -> list[Verdict]:
        """Return one verdict for each case, in order.

        Cases in the cache are not asked, and equal cases are asked once. Each verdict is written to
        disk as it arrives, so a run that is killed keeps the verdicts it has paid for.

        Args:
            cases: what to judge.
            progress: show a progress bar.
        """
        keys = [self.key(case) for case in cases]
        known = {key: row for key in keys if (row := self.cache.get(key)) is not None}
        verdicts = {
            key: Verdict(row.correct, row.rationale, attempts=row.attempts, cached=True)
            for key, row in known.items()
        }
        wanted = {key: case for key, case in zip(keys, cases, strict=True) if key not in known}
        self._silences = 0
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as pool:
            asked = {pool.submit(self._ask, case): key for key, case in wanted.items()}
            try:
                for done in _watched(asked, f"judge {self.model}", progress):
                    verdicts[asked[done]] = self._keep(asked[done], done.result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        self._report_failures(verdicts[key] for key in keys)
        return [verdicts[key] for key in keys]

    def key(self, case: JudgeCase) -> str:
        """Return the key of a cached verdict: a hash of judge, settings, prompt and case."""
        judge = (self.model, self.settings, PROMPT_VERSION, PROMPT)
        return content_key(*judge, case.question, list(case.golds), case.prediction)

    def _keep(self, key: str, verdict: Verdict) -> Verdict:
        if verdict.correct is not None:
            self.cache.put(
                key,
                self.model,
                PROMPT_VERSION,
                verdict.correct,
                verdict.rationale,
                verdict.attempts,
            )
        return verdict

    def _ask(self, case: JudgeCase) -> Verdict:
        """Ask about one case until a reply holds a verdict; runs in a thread."""
        messages, error = case.messages(), ""
        for attempt in range(1, self.attempts + 1):
            if self._is_down():
                return Verdict(None, error="not asked: the judge does not answer")
            try:
                reply = self.chat(messages)
            except (OSError, RuntimeError, ValueError) as reason:
                self._count_silence()
                return Verdict(None, error=f"no reply: {reason}", attempts=attempt)
            self._count_silence(answered=True)
            try:
                return replace(parse_verdict(reply), attempts=attempt)
            except ValueError as reason:
                error = str(reason)
            again = {"role": "user", "content": _AGAIN}
            messages = [*case.messages(), {"role": "assistant", "content": reply}, again]
        return Verdict(None, error=error, attempts=self.attempts)

    def _is_down(self) -> bool:
        with self._lock:
            return self._silences >= self.give_up_after

    def _count_silence(self, answered: bool = False) -> None:
        with self._lock:
            if answered and self._silences < self.give_up_after:
                self._silences = 0
            elif not answered:
                self._silences += 1

    def _report_failures(self, verdicts: Iterable[Verdict]) -> None:
        errors = [verdict.error for verdict in verdicts if verdict.error is not None]
        if errors:
            log.warning(
                "judge %s: no verdict on %d cases, the first: %s; run again to ask again",
                self.model,
                len(errors),
                errors[0],
            )


def parse_verdict(reply: str) -> Verdict:
    """Return the verdict that a reply holds.

    The last JSON object with a ``judgement`` counts, wherever it stands: after a thought, in a code
    fence, between words. If no object can be read (unescaped quotes in the rationale), the field is
    searched for in the text, and must have one value only. Nothing inside a thought counts, nor
    inside one that the reply does not end.

    Raises:
        ValueError: the reply holds no verdict; the message shows its beginning.
    """
    text = behind_thoughts(reply)
    for found in reversed(list(_objects(text))):
        said = found.get("judgement", found.get("judgment"))
        if isinstance(said, str) and (word := said.strip(" .'\"").lower()) in _WORDS:
            return Verdict(_WORDS[word], str(found.get("rationale", "")))
    words = {match.lower() for match in _FIELD.findall(text)}
    if len(words) == 1:
        return Verdict(_WORDS[words.pop()], text.strip())
    raise ValueError(f"a judgement must be 'correct' or 'incorrect', got {reply.strip()[:200]!r}")


def judge_score(verdicts: Iterable[Verdict]) -> JudgeScore:
    """Return the share of correct answers over those that have a verdict."""
    said = [verdict.correct for verdict in verdicts]
    judged = [correct for correct in said if correct is not None]
    share = sum(judged) / len(judged) if judged else None
    return JudgeScore(share, len(judged), len(said) - len(judged))


def _objects(text: str) -> Iterable[dict[str, object]]:
    """The outermost JSON objects of a text, in order; strings may hold control characters."""
    decoder, place = json.JSONDecoder(strict=False), text.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(found, dict):
                yield found
        place = text.find("{", end)


def _watched(
    asked: Mapping[Future[Verdict], str], title: str, progress: bool
) -> Iterable[Future[Verdict]]:
    done = as_completed(asked)
    return progress_bar(done, title, len(asked), unit="case") if progress and asked else done

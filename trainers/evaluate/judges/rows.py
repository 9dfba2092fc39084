"""The judges of an evaluation, whose verdicts become part of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from research_rl.agents import SamplingParams
from research_rl.agents.methods import Generator
from research_rl.trainers.evaluate.judges.cache import JudgeCache
from research_rl.trainers.evaluate.judges.judge import Chat, Judge, JudgeCase, JudgeMessage
from research_rl.trainers.evaluate.measures import Row

CACHE = "verdicts.jsonl"
VERDICT_TOKENS = 1024
"""Limit of a judge's reply in tokens: a rationale, then the verdict."""


def judge_rows(rows: Sequence[Row], judges: Mapping[str, Generator], folder: Path) -> list[Row]:
    """Ask every judge about every answered row, and return the rows that changed.

    Where a judge fails the row keeps the reason, and the next run asks again. Verdicts are cached
    by content in ``folder``: an answer that several methods or runs gave is paid for once. If a
    name now stands for another model or server, that one is asked.

    Args:
        rows: of any cells; rows with an error are skipped.
        judges: by their names in the card.
        folder: of the evaluation.
    """
    cache = JudgeCache(folder / CACHE)
    changed: dict[int, Row] = {}
    for name, generator in judges.items():
        todo = [(place, row) for place, row in enumerate(rows) if row["error"] is None]
        model = str(getattr(generator, "model", name))
        judge = Judge(model, chat_of(generator), cache, settings=asked_how(generator))
        verdicts = judge.judge([_case(row) for _, row in todo], progress=True)
        for (place, row), verdict in zip(todo, verdicts, strict=True):
            said = {"verdict": verdict.correct, "error": verdict.error}
            if row["judge"].get(name) != said:
                before = changed.get(place, row)
                changed[place] = {**before, "judge": {**before["judge"], name: said}}
    return [changed[place] for place in sorted(changed)]


def asked_how(generator: Generator) -> dict[str, object]:
    """Return what identifies a judge besides its name: where and how it is asked.

    Of its addresses only the hosts count, because ports may change.
    """
    hosts = {urlsplit(url).hostname or "" for url in getattr(generator, "urls", ())}
    return {
        "hosts": sorted(hosts),
        "api": getattr(generator, "api", None),
        "extra": getattr(generator, "extra", {}),
        "max_tokens": VERDICT_TOKENS,
        "temperature": 0.0,
    }


def chat_of(generator: Generator) -> Chat:
    """Return a function that sends one conversation, greedily, and returns the reply."""
    params = SamplingParams(max_response_tokens=VERDICT_TOKENS, temperature=0.0, stop=())

    def chat(messages: Sequence[JudgeMessage]) -> str:
        reply = generator.generate([[dict(message) for message in messages]], params)[0]
        if reply.error is not None:
            raise RuntimeError(reply.error)
        return reply.text

    return chat


def _case(row: Row) -> JudgeCase:
    return JudgeCase(row["question"], tuple(row["answers"]), row["prediction"])

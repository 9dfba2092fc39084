"""The judges of an evaluation look at its rows; their verdicts become part of them."""

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
"""Most tokens of a judge's reply: a rationale and the verdict behind it."""


def judge_rows(rows: Sequence[Row], judges: Mapping[str, Generator], folder: Path) -> list[Row]:
    """Ask every judge about every answered row, and return the rows that changed.

    A judge that fails leaves its reason; the next run asks again. Verdicts are kept by content in
    ``folder``: an answer is paid for once, whatever number of methods and runs have it, and a name
    that has come to mean another judge gets that one's verdicts.

    Args:
        rows: of any cells; those without an answer from the model's server are passed over.
        judges: by the name that the card calls them.
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
    """Return what besides its name makes a judge what it is: where and how it is asked.

    The hosts stand for the server, whose port may change.
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

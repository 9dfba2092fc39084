"""What is told of an episode, ready for JSON: its parts as they come, and the answer at the end.

The events of ``research ask --web`` and of the chat endpoint, in the order of an episode. All text
is text that UTF-8 can write, whatever a model or an index holds::

    {"event": "note", "text": "The model reads <unk> in place of ..."}  # mostly none
    {"event": "part", "turn": 0, "part": 0, "kind": "think", "text": "I need the"}
    {"event": "more", "turn": 0, "part": 0, "text": " director ."}
    {"event": "part", "turn": 0, "part": 1, "kind": "search", "text": "director of Alien"}
    {"event": "result", "turn": 0, "searches": [{"query": ..., "passages": [...]}], "text": ...}
    {"event": "answer", "answer": "Ridley Scott", ...}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from research_rl.agents import Prediction
from research_rl.envs import Passage
from research_rl.envs.protocols import RESEARCH, Part, Protocol
from research_rl.envs.system import scalar_text
from research_rl.trainers.agent.asker import Stretch
from research_rl.trainers.audit import UNTELLING, stands_in, tokens_of
from research_rl.trainers.viewer import turn_parts

Event = dict[str, Any]
"""``event`` says which it is."""
_HALF_TAG = re.compile(r"<[^<>\s]{0,40}$")
_NO_ANSWER = {
    "no_answer": "the model ended without an answer",
    "search_budget": "the searches are used up and the model asked for more",
    "turn_budget": "the turns are used up",
    "length": "the tokens are used up; allow more with --max-tokens",
    "error": "the server failed",
}


class EpisodeEvents:
    """Makes events of the stretches of one episode.

    Args:
        send: hears each event.
        protocol: the language of the episode.
    """

    def __init__(self, send: Callable[[Event], None], protocol: Protocol = RESEARCH) -> None:
        self._send, self._protocol = send, protocol
        self._turn, self._text = 0, ""
        self._told: list[Part] = []

    def __call__(self, stretch: Stretch) -> None:
        """Hear a stretch."""
        if stretch.turn != self._turn:
            self._turn, self._text, self._told = stretch.turn, "", []
        if stretch.role == "model":
            self._text += stretch.text
            # a tag that is half there would be shown as text for a moment
            self._tell(_HALF_TAG.sub("", self._text))
            return
        self._tell(self._text)
        searches = [
            {"query": scalar_text(query), "passages": [passage_told(p) for p in passages]}
            for query, passages in stretch.found
        ]
        text = scalar_text(self._protocol.content(stretch.text))
        self._send({"event": "result", "turn": self._turn, "searches": searches, "text": text})

    def end(self) -> None:
        """Tell what was held back: half a tag at the end of a turn that was cut off."""
        self._tell(self._text)

    def _tell(self, turn: str) -> None:
        """Tell what is new in the parts of a turn."""
        parts = turn_parts(scalar_text(turn), self._protocol)
        for number, part in enumerate(parts):
            before = self._told[number] if number < len(self._told) else None
            if before is not None and before[:2] == part[:2]:
                continue
            told: Event = {"turn": self._turn, "part": number}
            grown = before is not None and before.kind == part.kind
            if grown and before is not None and part.text.startswith(before.text):
                self._send({"event": "more", **told, "text": part.text[len(before.text) :]})
            else:
                self._send({"event": "part", **told, "kind": part.kind, "text": part.text})
        self._told = parts


def answer_told(prediction: Prediction, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return an answer with what led to it, and the asker's ``notes`` of the question.

    ``passages`` are those that were shown, each once, in order; ``holds_answer`` says whether the
    answer's words stand in it. ``searches`` names them by their ids.
    """
    wanted = tokens_of(prediction.text)
    telling = bool(wanted) and not (len(wanted) == 1 and wanted[0] in UNTELLING)
    passages: dict[str, dict[str, Any]] = {}
    for passage in (p for found in prediction.passages for p in found):
        if passage.id not in passages:
            holds = telling and stands_in(wanted, tokens_of(passage.contents))
            passages[passage.id] = passage_told(passage) | {"holds_answer": holds}
    found = zip(prediction.queries, prediction.passages, strict=False)
    return {
        "answer": scalar_text(prediction.text),
        "no_answer": None if prediction.text else why_none(prediction),
        "finish_reason": prediction.finish_reason,
        "searches": [
            {"query": scalar_text(q), "passages": [scalar_text(p.id) for p in shown]}
            for q, shown in found
        ],
        "passages": list(passages.values()),
        "notes": list(notes),
        "usage": usage_of(prediction),
        "seconds": round(prediction.seconds, 3),
    }


def why_none(prediction: Prediction) -> str:
    """Return why there is no answer."""
    why = _NO_ANSWER.get(prediction.finish_reason, "the answer is empty")
    return scalar_text(f"{why}: {prediction.error}") if prediction.error else why


def usage_of(prediction: Prediction) -> dict[str, int]:
    """Return the tokens that were read and written, under OpenAI's names.

    A passage counts among those that were read; so does the prompt, where the model is in this
    process.
    """
    prompt = prediction.result_tokens
    if prediction.rollout is not None:
        prompt += len(prediction.rollout.sequence.prompt_ids)
    written = prediction.sampled_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def passage_told(passage: Passage) -> dict[str, Any]:
    """Return a passage as it is shown: its id, title, text and score, and its source if known."""
    title, _, text = passage.contents.partition("\n")
    told: dict[str, Any] = {
        "id": scalar_text(passage.id),
        "title": scalar_text(title.strip().strip('"')),
        "text": scalar_text(text.strip()),
    }
    score = float(passage.score)
    told["score"] = score if math.isfinite(score) else None
    return told | ({"source": scalar_text(passage.source)} if passage.source else {})

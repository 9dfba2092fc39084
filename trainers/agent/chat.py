"""OpenAI's chat completions as the agent speaks them: what a request asks, what a reply says.

The question is the last message, which must be the user's. What was said before is not read: the
policy has learned to answer one question. The answer is the content of the reply; beside the
choices stands ``research`` with the searches and the passages.
"""

from __future__ import annotations

import reprlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research_rl.agents import Prediction, SamplingParams
from research_rl.envs.system import did_you_mean
from research_rl.envs.web import Refused
from research_rl.trainers.agent.events import answer_told, usage_of
from research_rl.trainers.agent.question_queue import Inquiry

_NEUTRAL: dict[str, Any] = {
    **{"n": 1, "top_p": 1, "stop": None, "logprobs": False, "top_logprobs": 0},
    **{"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "tools": []},
    **{"tool_choice": "none", "response_format": {"type": "text"}, "functions": []},
    **{"function_call": "none", "modalities": ["text"]},
}
"""Fields that are understood and must keep this value, or be left out."""
_PASSED_OVER = {"user", "metadata", "store", "service_tier", "parallel_tool_calls"}
"""Fields that change nothing of an answer; what they hold is not looked at."""
_READ = {
    *("model", "messages", "stream", "stream_options", "temperature", "seed", "max_tokens"),
    "max_completion_tokens",
}
_ROLES = ("system", "developer", "user", "assistant")
_SEEDS = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class ChatRequest:
    """What a request for a chat completion asks.

    Args:
        inquiry: the question, and how to answer it.
        model: as it was named.
        unread: messages before the question.
        stream: whether the reply comes in chunks.
        usage: whether a stream ends with a count of tokens.
    """

    inquiry: Inquiry
    model: str
    unread: int
    stream: bool
    usage: bool


def chat_request(body: Any, served: str, usual: SamplingParams) -> ChatRequest:
    """Return what a body asks.

    Args:
        body: of the request.
        served: the name of the agent.
        usual: how is sampled where the request does not say.

    Raises:
        Refused: names the field and what must hold.
    """
    if not isinstance(body, dict):
        raise Refused(f"the body must be a JSON object, got {type(body).__name__}")
    _check_fields(body)
    model = body.get("model")
    if not isinstance(model, str):
        raise Refused(f"model must be a text, got {_short(model)}")
    if model != served:
        raise Refused(f"model must be {served!r}, got {_short(model)}", 404)
    question, unread = _asked(body.get("messages"))
    options = _mapping(body, "stream_options")
    if unknown := set(options) - {"include_usage", "include_obfuscation"}:
        raise Refused(f"stream_options must hold include_usage alone, got {sorted(unknown)[0]!r}")
    return ChatRequest(
        Inquiry(question, _params(body, usual), _whole(body, "seed", -_SEEDS, _SEEDS - 1)),
        model,
        unread,
        _flag(body, "stream"),
        _flag(options, "include_usage"),
    )


def question_in(body: Any) -> str:
    """Return the question of a body ``{"question": ...}``.

    Raises:
        Refused: it holds something else.
    """
    if not isinstance(body, dict):
        raise Refused(f"the body must be a JSON object, got {type(body).__name__}")
    if unknown := sorted(set(body) - {"question"}):
        raise Refused(f"the body must hold question alone, got {_short(unknown[0])}")
    question = body.get("question")
    if not isinstance(question, str):
        raise Refused(f"question must be a text, got {_short(question)}")
    return question


class ChatReplies:
    """What is replied to one request.

    Args:
        request: to which.
        notes: the asker's, of the question.
    """

    def __init__(self, request: ChatRequest, notes: Sequence[str] = ()) -> None:
        self._request, self._notes = request, notes
        made = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        self._whole = made | {"object": "chat.completion", "model": request.model}
        self._part = self._whole | {"object": "chat.completion.chunk"}

    def whole(self, prediction: Prediction) -> dict[str, Any]:
        """Return the whole reply."""
        told = self._research(prediction)
        message = {"role": "assistant", "content": told["answer"], "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        return self._whole | {
            "choices": [choice | {"finish_reason": _finish(prediction)}],
            "usage": usage_of(prediction),
            "research": told,
        }

    def begin(self) -> dict[str, Any]:
        """Return the first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return a chunk that tells what happens, without content."""
        return self._chunk({}) | {"research": dict(event)}

    def end(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Return the last chunks of a stream: the answer, its end, and a count of tokens."""
        told = self._research(prediction)
        chunks = [self._chunk({"content": told["answer"]})]
        last = self._chunk({}, _finish(prediction))
        chunks.append(last | {"research": told})
        if self._request.usage:
            chunks.append(self._part | {"choices": [], "usage": usage_of(prediction)})
        return chunks

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._part | {"choices": [choice]}

    def _research(self, prediction: Prediction) -> dict[str, Any]:
        told = answer_told(prediction, self._notes)
        return {n: told[n] for n in told if n != "usage"} | {
            "unread_messages": self._request.unread
        }


def _finish(prediction: Prediction) -> str:
    return "length" if prediction.finish_reason == "length" else "stop"


def _check_fields(body: Mapping[str, Any]) -> None:
    known = {*_READ, *_NEUTRAL, *_PASSED_OVER}
    if unknown := [name for name in body if name not in known]:
        hint = did_you_mean(unknown[0], sorted(known))
        raise Refused(f"{_short(unknown[0])} is no field that is known here{hint}; leave it out")
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and (
            value != neutral or isinstance(value, bool) != (neutral is False)
        ):
            raise Refused(f"{name} must be {neutral!r} here, or be left out; got {_short(value)}")


def _asked(messages: Any) -> tuple[str, int]:
    """The question, and how many messages stand before it."""
    if not isinstance(messages, list) or not messages:
        raise Refused(f"messages must be a list of at least one message, got {_short(messages)}")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise Refused(f"messages[{number}].role must be one of {known}; got {_short(message)}")
    place, last = len(messages) - 1, messages[-1]
    if last["role"] != "user":
        raise Refused(f"messages[{place}].role must be user, which asks; got {last['role']!r}")
    content = last.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if _is_text(part) else None for part in content]
        content = None if None in texts else "\n".join(map(str, texts))
    if not isinstance(content, str):
        raise Refused(
            f"messages[{place}].content must be a text, or a list of parts of type text; got "
            f"{_short(last.get('content'))}"
        )
    return content, place


def _is_text(part: Any) -> bool:
    known = isinstance(part, dict) and part.get("type") == "text"
    return known and isinstance(part.get("text"), str)


def _params(body: Mapping[str, Any], usual: SamplingParams) -> SamplingParams | None:
    """How to sample; None where the request does not say."""
    heat = body.get("temperature")
    if heat is not None:
        number = isinstance(heat, int | float) and not isinstance(heat, bool)
        if not number or not 0 <= heat <= 2:
            raise Refused(f"temperature must be a number from 0 to 2, got {_short(heat)}")
    most = usual.max_response_tokens
    budgets = [_whole(body, name, 1, most) for name in ("max_tokens", "max_completion_tokens")]
    given = [budget for budget in budgets if budget is not None]
    if heat is None and not given:
        return None
    return replace(
        usual,
        max_response_tokens=min([most, *given]),
        temperature=usual.temperature if heat is None else float(heat),
    )


def _whole(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refused(f"{name} must be a whole number from {least} to {most}, got {_short(value)}")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{name} must be true or false, got {_short(value)}")
    return bool(value)


def _mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise Refused(f"{name} must be an object, got {_short(value)}")
    return value or {}


def _short(value: Any) -> str:
    return _SHORT.repr(value)

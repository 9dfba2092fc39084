"""What a request for a completion asks for, checked value by value.

What is not understood is refused and not ignored: a rollout sampled in another way than it was
asked for is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research_rl.agents.types import SamplingParams
from research_rl.envs.web import Refused

_NEUTRAL: dict[str, Any] = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "n": 1,
    "stream": False,
    "echo": False,
    "ignore_eos": False,
    "use_beam_search": False,
    "suffix": None,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": [],
    "prompt_logprobs": None,
    "truncate_prompt_tokens": None,
    "best_of": 1,
    "length_penalty": 1.0,
    "add_special_tokens": True,
}
"""Fields that are understood and must keep this value, or be left out."""
_HEARD = frozenset(
    (
        *("model", "prompt", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "stop"),
        *("seed", "stop_token_ids", "include_stop_str_in_output", "logprobs", "return_token_ids"),
    )
)
"""Fields that shape the answer."""
_HARMLESS = frozenset({"user", "cache_salt", "skip_special_tokens", "priority"})
"""Fields that change nothing of what is sampled."""
MAX_STOPS, LONGEST_STOP = 64, 256
"""Stop strings of a request, and characters of one: each is looked for behind every token."""


def check_neutral(body: Mapping[str, Any]) -> None:
    """Refuse what this server cannot do.

    Raises:
        Refused: a field has another value than the one that changes nothing, or is not known.
    """
    known = _HEARD | _HARMLESS | set(_NEUTRAL)
    if strange := sorted(name for name in set(body) - known if body[name] is not None):
        raise Refused(
            f"the body must hold what this server knows, got {', '.join(strange)[:200]}; "
            "leave it out, or ask a server that does it"
        )
    for name, neutral in _NEUTRAL.items():
        if body.get(name, neutral) not in (neutral, None):
            raise Refused(f"{name} must be {neutral!r} on this server, got {body[name]!r}")
    if body.get("logprobs") not in (None, 0):
        raise Refused(
            f"logprobs must be 0 (the sampled token's) on this server, got {body['logprobs']!r}"
        )


def asked_params(body: Mapping[str, Any]) -> SamplingParams:
    """Return how a request wants to be sampled.

    Raises:
        Refused: a value is impossible.
    """
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise Refused(f"stop must be a string or a list of strings, got {str(stop)[:80]}")
    if len(stop) > MAX_STOPS or any(len(s) > LONGEST_STOP for s in stop):
        raise Refused(
            f"stop must be at most {MAX_STOPS} strings of at most {LONGEST_STOP} characters, got "
            f"{len(stop)}, the longest of {max(map(len, stop))}"
        )
    budget, least = body.get("max_tokens", 16), body.get("min_tokens") or 0
    top_k, temperature = body.get("top_k") or 0, body.get("temperature")
    top_p = body.get("top_p")
    numbers = {"max_tokens": budget, "min_tokens": least, "top_k": top_k}
    if wrong := [name for name, value in numbers.items() if not is_int(value)]:
        raise Refused(f"{wrong[0]} must be a whole number, got {numbers[wrong[0]]!r}")
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Refused(f"{name} must be a number, got {value!r}")
    return SamplingParams(
        max_response_tokens=budget,
        temperature=1.0 if temperature is None else float(temperature),
        top_p=1.0 if top_p is None else float(top_p),
        top_k=max(top_k, 0),
        stop=tuple(stop),
        min_new_tokens=least,
    )


def text_in(body: Mapping[str, Any], name: str) -> str:
    """Return a text that a request must have.

    Raises:
        Refused: it has none.
    """
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"{name} must be a text, got {value!r}")
    return value


def ids_in(value: Any, name: str) -> list[int]:
    """Return a list of token ids.

    Raises:
        Refused: it is none.
    """
    if not isinstance(value, list) or not all(map(is_int, value)):
        raise Refused(f"{name} must be a list of token ids, got {str(value)[:80]}")
    return value


def is_int(value: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)

"""Checks of JSON bodies that say which field is wrong, what it must be and what came instead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Json = Any


class WireError(ValueError):
    """A body that does not have the shape its dialect prescribes."""


def parse_json(data: bytes) -> Json:
    """Return the JSON value of a body; raise ``WireError`` where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        start = data[:60].decode("utf-8", "replace")
        raise WireError(f"the body must be JSON, got {start!r} ({error})") from error


def dump_json(value: Json) -> bytes:
    """Return ``value`` as ASCII JSON; raise ``WireError`` for a number JSON cannot hold."""
    try:
        return json.dumps(value, allow_nan=False).encode("ascii")
    except ValueError as error:
        raise WireError(f"a reply must hold finite numbers only ({error})") from error


def check_queries(queries: Sequence[str]) -> None:
    """Raise ``WireError`` unless every query is a string of valid Unicode.

    Whether an empty one is searched is the server's to say, ``empty_query`` of its config.
    """
    for position, query in enumerate(queries):
        string(query, f"query {position}")


def fields_of(
    body: Json, required: tuple[str, ...], optional: tuple[str, ...] | None
) -> dict[str, Json]:
    """Return ``body`` after a check of its keys; ``optional=None`` lets any other key pass."""
    if not isinstance(body, dict):
        raise WireError(f"the body must be a JSON object, got {_kind(body)}")
    missing = [key for key in required if key not in body]
    unknown = [] if optional is None else sorted(set(body) - set(required) - set(optional))
    if missing or unknown:
        known = ", ".join((*required, *(f"{key} (optional)" for key in optional or ())))
        fault = f"without {missing}" if missing else f"with {unknown}"
        raise WireError(f"the body must hold {known}, got one {fault}")
    return body


def member(value: Json, key: str) -> Json:
    """Return what the object ``value`` holds under ``key``."""
    if not isinstance(value, dict) or key not in value:
        found = f"the keys {sorted(value)}" if isinstance(value, dict) else _kind(value)
        raise WireError(f'an object must hold "{key}", got {found}')
    return value[key]


def array(value: Json, what: str) -> list[Json]:
    """Return ``value``, an array."""
    if not isinstance(value, list):
        raise WireError(f"{what} must be an array, got {_kind(value)}")
    return value


def rows_of(value: Json, size: int, what: str) -> list[list[Json]]:
    """Return ``value``, an array of ``size`` arrays: one for each query."""
    rows = array(value, what)
    if len(rows) != size:
        raise WireError(f"{what} must hold one array for each of {size} queries, got {len(rows)}")
    return [array(row, f"{what}[{position}]") for position, row in enumerate(rows)]


def query_list(value: Json, what: str) -> tuple[str, ...]:
    """Return ``value``, an array of at least one string."""
    queries = array(value, what)
    if not queries:
        raise WireError(f"{what} must hold at least one query, got none")
    return tuple(string(query, f"{what}[{i}]") for i, query in enumerate(queries))


def string(value: Json, what: str) -> str:
    """Return ``value``, a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise WireError(f"{what} must be a string, got {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise WireError(f"{what} must be valid Unicode, got a lone surrogate") from error
    return value


def finite_score(value: Json) -> float:
    """Return ``value``, a finite score."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"a score must be a finite number, got {value!r}")
    return float(value)


def flag(fields: Mapping[str, Json], key: str) -> bool:
    """Return the boolean under ``key``, False where there is none."""
    value = fields.get(key, False)
    if not isinstance(value, bool):
        raise WireError(f"{key} must be true or false, got {_kind(value)}")
    return value


def count(value: Json, what: str) -> int | None:
    """Return ``value``, a positive integer, or None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WireError(f"{what} must be a positive integer, got {value!r}")
    return value


def _kind(value: Json) -> str:
    names = {type(None): "null", bool: "a boolean", int: "an integer", float: "a number"}
    names |= {str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def source_in(document: Json) -> str:
    """Return where a passage stands, which our servers say and others do not: "" without."""
    source = document.get("source") if isinstance(document, dict) else None
    return source if isinstance(source, str) else ""

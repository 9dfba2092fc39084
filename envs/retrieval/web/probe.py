"""Detection of the dialect that a retrieval server speaks."""

from __future__ import annotations

from research_rl.envs.retrieval.web.dialects import DIALECTS, Dialect
from research_rl.envs.retrieval.web.json_checks import WireError, dump_json, parse_json
from research_rl.envs.web import RefusedByServerError, TransientError, Transport

_QUERY = "test"
_ORDER = ("research", "search-r1", "skyrl", "rllm", "zerosearch", "r1-searcher")


def detect_dialect(transport: Transport, url: str) -> Dialect:
    """Return the dialect of the server at ``url``.

    ReSearch is known by its ``/health``; any other by the first harmless query that is answered in
    the dialect's own shape.

    Raises:
        TransientError: the server does not answer at all.
        WireError: it answers, but in no known dialect.
    """
    if _is_research(transport, url):
        return DIALECTS["research"]
    answers = []
    for name in _ORDER:
        dialect = DIALECTS[name]
        body = dump_json(dialect.encode_request([_QUERY], 1))
        reply = transport.request("POST", url + dialect.route, body)
        if reply.status in (429, 502, 503, 504):
            reply.check()
        try:
            dialect.decode_response(parse_json(reply.check()), [_QUERY], 1)
        except (WireError, RefusedByServerError, TransientError) as error:
            answers.append(f"{name}: {str(error)[:100]}")
        else:
            return dialect
    raise WireError(
        "the server must speak a known dialect, and answered a test query in none "
        f"({'; '.join(answers)}); set dialect to see the first error in full"
    )


def _is_research(transport: Transport, url: str) -> bool:
    """Whether ``/health`` answers in ReSearch's form; a failing index is a ``TransientError``."""
    reply = transport.request("GET", url + "/health")
    if reply.status in (429, 502, 503, 504):
        reply.check()
    try:
        report = parse_json(reply.body)
    except WireError:
        return False
    retrievers = report.get("retrievers") if isinstance(report, dict) else None
    return reply.status == 200 and isinstance(retrievers, dict) and "total" in retrievers

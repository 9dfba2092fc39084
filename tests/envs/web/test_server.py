"""What the servers have in common: the key, bodies, refusals, and what is said before a start."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("fastapi")

from doubles.fake_retrieval import post
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from research_rl.envs.web.server import (
    Refused,
    ServerThread,
    check_key,
    json_body,
    listen,
    make_app,
    make_server,
    refusal,
    warn_if_open,
)

KEY = "s3cret"
BEARER = {"Authorization": f"Bearer {KEY}"}


async def echo(request: Request) -> Response:
    try:
        check_key(request, KEY)
        return JSONResponse(await json_body(request, max_bytes=100, seconds=20.0))
    except Refused as error:
        return refusal(error, {"why": str(error)})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = make_app("echo", lifespan)
    app.add_api_route("/echo", echo, methods=["POST"])
    server = make_server(app, "warning", grace=5)
    with ServerThread(server, listen("127.0.0.1", 0)) as running:
        yield running.url


@pytest.mark.parametrize(
    ("headers", "body", "status", "reply"),
    [
        (BEARER, {"a": [1]}, 200, {"a": [1]}),
        (BEARER, b"null", 200, None),
        ({}, {}, 401, {"why": "send the server's key as 'Authorization: Bearer KEY'"}),
        ({"Authorization": KEY}, {}, 401, {"why": "send the server's key as"}),
        ({"Authorization": "Bearer \xe9"}, {}, 401, {"why": "send the server's key as"}),
        (BEARER, b"{", 400, {"why": "the body must be JSON, got '{'"}),
        (BEARER, b"", 400, {"why": "the body must be JSON, got ''"}),
        (BEARER, b"[" * 99, 400, {"why": "the body must be JSON"}),
        (BEARER, b"\xff\xfe", 400, {"why": "the body must be JSON"}),
        (BEARER, {"a": "x" * 200}, 413, {"why": "a body must have at most 100 bytes"}),
    ],
)
def test_a_request_is_read_or_refused(
    url: str, headers: dict[str, str], body: object, status: int, reply: object
) -> None:
    given, told = post(f"{url}/echo", body, headers)
    assert given == status
    if isinstance(reply, dict) and "why" in reply:
        assert told["why"].startswith(reply["why"])
    else:
        assert told == reply


@pytest.mark.parametrize(
    ("status", "header"),
    [(401, "WWW-Authenticate"), (408, "Connection"), (413, "Connection"), (429, "Retry-After")],
)
def test_a_refusal_says_what_a_client_is_to_do(status: int, header: str) -> None:
    answer = refusal(Refused("no \udc80", status), {"why": "no \udc80"})
    assert (answer.status_code, header in answer.headers) == (status, True)
    assert answer.body == rb'{"why": "no \udc80"}'


def test_a_server_that_all_may_use_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for host, key in (
            ("127.0.0.1", None),
            ("localhost", None),
            ("::1", None),
            ("0.0.0.0", KEY),
        ):
            warn_if_open(host, key)
        assert not caplog.records
        warn_if_open("0.0.0.0", None)
    assert caplog.messages == ["0.0.0.0 can be reached from other machines and asks for no key"]


@pytest.mark.parametrize("module", ["envs.web", "envs.retrieval.web", "agents.web"])
def test_nothing_of_a_server_is_imported_before_one_starts(module: str) -> None:
    code = (
        f"import sys, research_rl.{module};"
        "assert not {'fastapi', 'uvicorn', 'prometheus_client'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

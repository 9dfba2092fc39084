"""The server of ``research serve-policy``: the part of vLLM's protocol that rollouts need.

FastAPI and uvicorn come with the extra ``serve``; this module imports them at once, so it is
imported where a server starts and nowhere else. See docs/rollout-servers.md.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from research_rl.agents.types import Sequence
from research_rl.agents.web.jobs import QueueFullError
from research_rl.agents.web.request_body import (
    asked_params,
    check_neutral,
    ids_in,
    is_int,
    text_in,
)
from research_rl.agents.web.request_queue import Completion, RequestQueue
from research_rl.envs.web import (
    BodyBudget,
    Count,
    Gate,
    Refused,
    ServerCounters,
    ServerThread,
    answered,
    check_host,
    check_json_type,
    check_key,
    json_body,
    listen,
    make_app,
    make_server,
    refusal,
)

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 8 * 2**20
BODY_SECONDS = 30.0
_BYTES_A_TOKEN, _BYTES_BESIDE = 16, 2**16
"""A body may have so many for each position of the model, and so many for all else."""
GRACE = 60
"""Seconds that turns under way have when the server is told to stop."""
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


def create_sampling_app(
    queue: RequestQueue, api_key: str | None = None, weights_below: Path | None = None
) -> FastAPI:
    """Return the application that answers from ``queue``, which it starts and closes.

    Args:
        queue: answers.
        api_key: what clients must send; None lets all in.
        weights_below: a folder; weights and adapters are loaded from it and from folders in it.
            None loads none without a key, and from anywhere for clients that have the key.
    """
    routes = _Routes(queue, api_key, weights_below)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        queue.start()
        yield
        await asyncio.to_thread(queue.close, finish=False)

    app = make_app("research-rl rollout server", lifespan)
    app.add_api_route("/v1/completions", routes.complete, methods=["POST"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    app.add_api_route("/v1/load_lora_adapter", routes.load_adapter, methods=["POST"])
    app.add_api_route("/collective_rpc", routes.collective_rpc, methods=["POST"])
    app.add_api_route("/reset_prefix_cache", routes.reset_prefix_cache, methods=["POST"])
    routes.counters.add_to(app)
    app.add_middleware(Gate, let_in=routes.let_in, refused=_error)
    return app


class _Routes:
    """What each route answers."""

    def __init__(self, queue: RequestQueue, api_key: str | None, below: Path | None) -> None:
        self._queue, self._key, self._below = queue, api_key, below
        self._encoding = asyncio.Lock()
        longest = queue.policy.max_length
        room = MAX_BODY_BYTES if longest is None else longest * _BYTES_A_TOKEN + _BYTES_BESIDE
        self._max_body = min(room, MAX_BODY_BYTES)
        self._max_values = (MAX_BODY_BYTES // 2 if longest is None else longest) + 4096
        self._bodies = BodyBudget()
        self._longest_token: int | None = None
        self._answered = 0
        self.counters = ServerCounters(self._counts)

    def let_in(self, request: Request) -> None:
        """Refuse those without the key, and pages of a browser.

        Raises:
            Refused: with status 401 or 403.
        """
        if request.url.path != "/health":
            check_key(request, self._key)
        check_host(request, self._key)

    async def complete(self, request: Request) -> Response:
        """Sample behind one prompt."""
        try:
            body = await self._json(request)
            completion = await self._completion(body)
            try:
                job = self._queue.submit(completion)
            except QueueFullError as error:
                raise Refused(f"{error}; ask again later", 429) from error
            except ValueError as error:
                raise Refused(str(error)) from error
            sequence = await self._answer(request, job)
        except Refused as error:
            return _error(error)
        self._answered += 1
        return JSONResponse(self._reply(body, completion, sequence))

    async def models(self) -> Response:
        """Name what is served."""
        length = self._queue.policy.max_length
        rows = [
            {"id": name, "object": "model", "owned_by": "research-rl", "max_model_len": length}
            for name in self._queue.models
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def load_adapter(self, request: Request) -> Response:
        """Serve a LoRA adapter from a folder."""
        try:
            body = await self._json(request)
            name, folder = text_in(body, "lora_name"), self._folder(body, "lora_path")
            known = self._queue.models
            if name == known[0]:
                raise Refused(f"lora_name must not be the model's own name {name!r}")
            if name in known and not body.get("load_inplace"):
                raise Refused(f"the adapter {name!r} is loaded already; send load_inplace: true")
            await _changed("lora_path", self._queue.load_adapter, name, folder)
        except Refused as error:
            return _error(error)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def collective_rpc(self, request: Request) -> Response:
        """Take the weights of a folder; no other method is there."""
        try:
            body = await self._json(request)
            if body.get("method") != "reload_weights":
                raise Refused(f"method must be reload_weights, got {body.get('method')!r}")
            kwargs = body.get("kwargs")
            if not isinstance(kwargs, dict):
                raise Refused("kwargs must hold weights_path")
            folder = self._folder(kwargs, "weights_path")
            await _changed("weights_path", self._queue.reload, folder)
        except Refused as error:
            return _error(error)
        return JSONResponse({"results": [None]})

    async def reset_prefix_cache(self) -> Response:
        """Answer that it is done: nothing is kept between two runs."""
        return JSONResponse({"success": True})

    def _counts(self) -> tuple[Count, ...]:
        return (
            Count("research_rollout_turns", "Turns that were answered.", self._answered),
            Count("research_rollout_runs", "Runs of the engine.", self._queue.runs),
        )

    async def _answer(self, request: Request, job: Future[Sequence]) -> Sequence:
        """What a request gets; one whose client hung up is given up."""
        try:
            sequence: Sequence = await answered(request, None, _waited(job))
        except BaseException:  # also where the server stops, and cancels what waits
            self._queue.drop(job)
            raise
        return sequence

    async def _json(self, request: Request) -> dict[str, Any]:
        check_json_type(request)
        body = await json_body(
            request, self._max_body, BODY_SECONDS, self._bodies, self._max_values
        )
        if not isinstance(body, dict):
            raise Refused(f"the body must be a JSON object, got {type(body).__name__}")
        return body

    def _folder(self, body: Mapping[str, Any], name: str) -> str:
        """The folder that a request wants loaded."""
        if self._key is None and self._below is None:
            raise Refused(
                "weights are loaded only for clients with a key, or from a folder that the server "
                "was given; start it with RESEARCH_SERVER_KEY or --weights-below DIR",
                403,
            )
        folder = text_in(body, name)
        if self._below is not None and not Path(folder).resolve().is_relative_to(
            self._below.resolve()
        ):
            raise Refused(f"{name} must be a folder below {self._below}, got {folder!r}", 403)
        if not Path(folder).is_dir():
            raise Refused(f"{name} must be a folder that this server can read, got {folder!r}")
        return folder

    async def _completion(self, body: Mapping[str, Any]) -> Completion:
        check_neutral(body)
        model = text_in(body, "model")
        if model not in self._queue.models:
            raise Refused(f"The model `{model}` does not exist.", 404)
        strangers = set(ids_in(body.get("stop_token_ids") or [], "stop_token_ids"))
        if strangers := strangers - self._queue.policy.eos_ids:
            raise Refused(
                f"stop_token_ids must be ends of sequence of the model, got {sorted(strangers)}"
            )
        seed = body.get("seed")
        if seed is None:
            seed = secrets.randbits(62)
        if not is_int(seed) or not _SMALLEST <= seed <= _LARGEST:
            raise Refused(f"seed must be an int64, got {seed!r}")
        return Completion(model, await self._prompt(body.get("prompt")), asked_params(body), seed)

    async def _prompt(self, prompt: Any) -> tuple[int, ...]:
        longest = self._queue.policy.max_length
        if isinstance(prompt, str):
            await self._check_length(prompt, longest)
            async with self._encoding:  # beside the event loop, which answers others meanwhile
                found = await asyncio.to_thread(self._queue.policy.tokenizer, prompt)
            encoded: list[int] = found["input_ids"]
            return tuple(encoded)
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
            prompt = prompt[0]
        if isinstance(prompt, list) and longest is not None and len(prompt) > longest:
            raise Refused(
                f"prompt must fit in the model's {longest} positions, got {len(prompt)} ids"
            )
        return tuple(ids_in(prompt, "prompt"))

    async def _check_length(self, prompt: str, longest: int | None) -> None:
        """Refuse a text that no tokens of the model can write in so many positions."""
        if longest is None or len(prompt) <= longest:
            return
        if self._longest_token is None:
            vocabulary = await asyncio.to_thread(self._queue.policy.tokenizer.get_vocab)
            self._longest_token = max(map(len, vocabulary))
        if len(prompt) > longest * self._longest_token:
            raise Refused(
                f"prompt must fit in the model's {longest} positions, got {len(prompt)} characters"
            )

    def _reply(
        self, body: Mapping[str, Any], completion: Completion, sequence: Sequence
    ) -> dict[str, Any]:
        policy, ids = self._queue.policy, sequence.response_ids
        text = policy.decode(ids)
        found = [(text.find(s), s) for s in completion.params.stops if s in text]
        stop = min(found)[1] if found and sequence.finish == "stop" else None
        if stop is not None and not body.get("include_stop_str_in_output"):
            text = text[: text.find(stop)]
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "finish_reason": "length" if sequence.finish == "length" else "stop",
            "stop_reason": stop,
            "logprobs": None,
        }
        if body.get("logprobs") is not None:
            tokens = policy.tokenizer.convert_ids_to_tokens(ids)
            choice["logprobs"] = {"token_logprobs": sequence.logprobs, "tokens": tokens}
        if body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": list(completion.prompt)}
        usage = {"prompt_tokens": len(completion.prompt), "completion_tokens": len(ids)}
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": completion.model,
            "choices": [choice],
            "usage": usage | {"total_tokens": sum(usage.values())},
        }


async def _changed(field: str, change: Callable[..., Future[None]], *given: str) -> None:
    """Have weights taken; those that cannot be are the request's fault.

    Raises:
        Refused: names the field, with status 400, or 429 where the queue is full.
    """
    try:
        await asyncio.wrap_future(change(*given))
    except QueueFullError as error:
        raise Refused(f"{error}; ask again later", 429) from error
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        log.warning("%s was not taken: %s", field, error)
        raise Refused(f"{field} must name a folder that can be taken, but {error}") from error


async def _waited(job: Future[Any]) -> Any:
    """The job's result; what went wrong in it becomes a refusal."""
    try:
        return await asyncio.wrap_future(job)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        log.exception("a job failed")
        raise Refused(f"{type(error).__name__}: {error}", 500) from error


def _error(error: Refused) -> Response:
    detail = {"message": str(error), "type": "BadRequestError", "code": error.status}
    return refusal(error, {"error": detail})


def serve_sampling(
    queue: RequestQueue,
    bound: socket.socket,
    api_key: str | None = None,
    weights_below: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; turns under way are answered before it returns.

    The arguments are those of ``create_sampling_app``; ``bound`` is where it listens.
    """
    _server(queue, api_key, weights_below, "info").run(sockets=[bound])


def _server(
    queue: RequestQueue, api_key: str | None, weights_below: Path | None, level: str
) -> uvicorn.Server:
    app = create_sampling_app(queue, api_key, weights_below)
    return make_server(app, level, grace=GRACE, keep_alive=600)


class BackgroundRolloutServer(ServerThread):
    """A rollout server in a thread of this process, for tests and notebooks.

    Args:
        queue: what answers; started and closed with the server.
        port: 0 takes a free one.
        api_key: what clients must send; None lets all in.
        weights_below: see ``create_sampling_app``.
    """

    def __init__(
        self,
        queue: RequestQueue,
        port: int = 0,
        api_key: str | None = None,
        weights_below: Path | None = None,
    ) -> None:
        self.queue = queue
        bound = listen("127.0.0.1", port)
        super().__init__(_server(queue, api_key, weights_below, "warning"), bound)

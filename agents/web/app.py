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
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from research_rl.agents.types import SamplingParams, Sequence
from research_rl.agents.web.request_queue import Completion, RequestQueue
from research_rl.envs.web import (
    Refused,
    ServerThread,
    check_key,
    json_body,
    listen,
    make_app,
    make_server,
    refusal,
)

log = logging.getLogger(__name__)
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
}
"""Fields that are understood and must keep this value, or be left out."""
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


def create_sampling_app(queue: RequestQueue, api_key: str | None = None) -> FastAPI:
    """Return the application that answers from ``queue``, which it starts and closes."""
    routes = _Routes(queue, api_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        queue.start()
        yield
        await asyncio.to_thread(queue.close)

    app = make_app("research-rl rollout server", lifespan)
    app.add_api_route("/v1/completions", routes.complete, methods=["POST"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    app.add_api_route("/v1/load_lora_adapter", routes.load_adapter, methods=["POST"])
    app.add_api_route("/collective_rpc", routes.collective_rpc, methods=["POST"])
    app.add_api_route("/reset_prefix_cache", routes.reset_prefix_cache, methods=["POST"])
    app.add_api_route("/health", routes.health, methods=["GET"])
    app.add_api_route("/metrics", routes.metrics, methods=["GET"])
    app.middleware("http")(routes.let_in)
    return app


class _Routes(Collector):
    """What each route answers."""

    def __init__(self, queue: RequestQueue, api_key: str | None) -> None:
        self._queue, self._key = queue, api_key
        self._started = time.time()
        self._answered = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    async def let_in(self, request: Request, call_next: Any) -> Response:
        """Refuse those without the key, and turn refusals into answers."""
        try:
            if request.url.path != "/health":
                check_key(request, self._key)
        except Refused as error:
            return _error(error)
        answered: Response = await call_next(request)
        return answered

    async def complete(self, request: Request) -> Response:
        """Sample behind one prompt."""
        try:
            body = await _json(request)
            completion = self._completion(body)
            try:
                job = self._queue.submit(completion)
            except ValueError as error:
                raise Refused(str(error)) from error
            sequence = await _waited(job)
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
            body = await _json(request)
            name, folder = _text(body, "lora_name"), _folder(body, "lora_path")
            known = self._queue.models
            if name == known[0]:
                raise Refused(f"lora_name must not be the model's own name {name!r}")
            if name in known and not body.get("load_inplace"):
                raise Refused(f"the adapter {name!r} is loaded already; send load_inplace: true")
            await _waited(self._queue.load_adapter(name, folder))
        except Refused as error:
            return _error(error)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def collective_rpc(self, request: Request) -> Response:
        """Take the weights of a folder; no other method is there."""
        try:
            body = await _json(request)
            if body.get("method") != "reload_weights":
                raise Refused(f"method must be reload_weights, got {body.get('method')!r}")
            kwargs = body.get("kwargs")
            if not isinstance(kwargs, dict):
                raise Refused("kwargs must hold weights_path")
            await _waited(self._queue.reload(_folder(kwargs, "weights_path")))
        except Refused as error:
            return _error(error)
        return JSONResponse({"results": [None]})

    async def reset_prefix_cache(self) -> Response:
        """Answer that it is done: nothing is kept between two runs."""
        return JSONResponse({"success": True})

    async def health(self) -> Response:
        """Say that the server runs."""
        return Response(status_code=200)

    async def metrics(self) -> Response:
        """Counters in Prometheus's text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def collect(self) -> Iterator[Metric]:
        """Yield the counters; a client knows by the first that the server was started anew."""
        yield GaugeMetricFamily(
            "process_start_time_seconds", "When the server began.", value=self._started
        )
        yield CounterMetricFamily(
            "research_rollout_turns", "Turns that were answered.", value=self._answered
        )
        yield CounterMetricFamily(
            "research_rollout_runs", "Runs of the engine.", value=self._queue.runs
        )

    def _completion(self, body: Mapping[str, Any]) -> Completion:
        for name, neutral in _NEUTRAL.items():
            if body.get(name, neutral) not in (neutral, None):
                raise Refused(f"{name} must be {neutral!r} on this server, got {body[name]!r}")
        if body.get("logprobs") not in (None, 0):
            raise Refused(
                f"logprobs must be 0 (the sampled token's) on this server, got {body['logprobs']!r}"
            )
        model = _text(body, "model")
        if model not in self._queue.models:
            raise Refused(f"The model `{model}` does not exist.", 404)
        strangers = set(_ids(body.get("stop_token_ids") or [], "stop_token_ids"))
        if strangers := strangers - self._queue.policy.eos_ids:
            raise Refused(
                f"stop_token_ids must be ends of sequence of the model, got {sorted(strangers)}"
            )
        seed = body.get("seed")
        if seed is None:
            seed = secrets.randbits(62)
        if not _is_int(seed) or not _SMALLEST <= seed <= _LARGEST:
            raise Refused(f"seed must be an int64, got {seed!r}")
        return Completion(model, self._prompt(body.get("prompt")), _params(body), seed)

    def _prompt(self, prompt: Any) -> tuple[int, ...]:
        if isinstance(prompt, str):
            encoded: list[int] = self._queue.policy.tokenizer(prompt)["input_ids"]
            return tuple(encoded)
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
            prompt = prompt[0]
        return tuple(_ids(prompt, "prompt"))

    def _reply(
        self, body: Mapping[str, Any], completion: Completion, sequence: Sequence
    ) -> dict[str, Any]:
        policy, ids = self._queue.policy, sequence.response_ids
        text = policy.decode(ids)
        found = [(text.find(s), s) for s in completion.params.stop if s in text]
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


def _params(body: Mapping[str, Any]) -> SamplingParams:
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise Refused(f"stop must be a string or a list of strings, got {stop!r}")
    budget, least = body.get("max_tokens", 16), body.get("min_tokens") or 0
    top_k, temperature = body.get("top_k") or 0, body.get("temperature")
    top_p = body.get("top_p")
    numbers = {"max_tokens": budget, "min_tokens": least, "top_k": top_k}
    if wrong := [name for name, value in numbers.items() if not _is_int(value)]:
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


async def _waited(job: Future[Any]) -> Any:
    """The job's result; what went wrong in it becomes a refusal."""
    try:
        return await asyncio.wrap_future(job)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        log.exception("a job failed")
        raise Refused(f"{type(error).__name__}: {error}", 500) from error


async def _json(request: Request) -> dict[str, Any]:
    body = await json_body(request)
    if not isinstance(body, dict):
        raise Refused(f"the body must be a JSON object, got {type(body).__name__}")
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"{name} must be a text, got {value!r}")
    return value


def _folder(body: Mapping[str, Any], name: str) -> str:
    folder = _text(body, name)
    if not Path(folder).is_dir():
        raise Refused(f"{name} must be a folder that this server can read, got {folder!r}")
    return folder


def _ids(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not all(map(_is_int, value)):
        raise Refused(f"{name} must be a list of token ids, got {str(value)[:80]}")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _error(error: Refused) -> Response:
    detail = {"message": str(error), "type": "BadRequestError", "code": error.status}
    return refusal(error, {"error": detail})


def serve_sampling(queue: RequestQueue, bound: socket.socket, api_key: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM; turns under way are answered before it returns."""
    _server(queue, api_key, "info").run(sockets=[bound])


def _server(queue: RequestQueue, api_key: str | None, level: str) -> uvicorn.Server:
    return make_server(create_sampling_app(queue, api_key), level, grace=60, keep_alive=600)


class BackgroundRolloutServer(ServerThread):
    """A rollout server in a thread of this process, for tests and notebooks.

    Args:
        queue: what answers; started and closed with the server.
        port: 0 takes a free one.
        api_key: what clients must send; None lets all in.
    """

    def __init__(self, queue: RequestQueue, port: int = 0, api_key: str | None = None) -> None:
        self.queue = queue
        bound = listen("127.0.0.1", port)
        super().__init__(_server(queue, api_key, "warning"), bound)

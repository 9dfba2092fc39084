"""One rollout server over HTTP: prompt ids in, sampled ids and their log-probs out.

The protocol is that of ``vllm serve``. Everything that shapes the sampling is sent with every
request, so that no default of the server or of the model's generation config can slip in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from research_rl.agents.types import SamplingParams
from research_rl.envs.web import RefusedByServerError, TransientError, Transport, base_url

PROBE_SECONDS = 10.0
"""How long a server may take to say how it is."""
_STARTED = re.compile(rb"^process_start_time_seconds(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_ENABLED_BY = {
    "/v1/load_lora_adapter": "; start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    "=1 in its environment",
    "/collective_rpc": "; start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment",
}
_NOT_TAKEN = frozenset({400, 404, 422, 500})
"""What servers answer that cannot read a folder, or cannot use what is in it."""
_LOWEST = -1e4
"""vLLM's log-prob of what it holds for impossible is -9999."""


class RefusedRequestError(RefusedByServerError, ValueError):
    """The server is there and will not do what it is asked.

    Args:
        message: what it says.
        status: of HTTP; 500 where it tried to take weights and could not.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Sampled:
    """What a server wrote: n tokens."""

    token_ids: list[int]  # [n]
    logprobs: list[float]  # [n] under the sampling distribution
    full: bool
    """Whether it ended for want of room, and not because a turn did."""


class RolloutClient:
    """Speaks to one server; thread-safe.

    Args:
        url: ``http://host:8000``, with or without ``/v1``.
        timeout: seconds a completion, or a change of weights, may take.
        connections: kept open.
        api_key: sent as ``Authorization: Bearer KEY`` unless None.

    Raises:
        ImportError: urllib3 is not installed.
    """

    def __init__(self, url: str, timeout: float, connections: int, api_key: str | None) -> None:
        self.url = base_url(url, "/v1")
        self._slow = Transport(timeout, connections, api_key)
        self._quick = Transport(min(PROBE_SECONDS, timeout), 1, api_key)

    def complete(self, request: Mapping[str, Any]) -> Sampled:
        """Return what the server wrote behind a prompt.

        Args:
            request: of ``completion_request``.

        Raises:
            TransientError: no whole and sane answer came.
            RefusedRequestError: the server will not answer this.
        """
        return parse_completion(self._post("/v1/completions", request), request)

    def check_health(self) -> None:
        """Return if the server is well; raise ``TransientError`` if not."""
        try:
            self._quick.request("GET", f"{self.url}/health").check()
        except RefusedByServerError as error:
            raise TransientError(f"/health: {error}") from error

    def models(self) -> dict[str, int | None]:
        """Return the names of what it serves, each with the positions it has, None if not told.

        Positions are those of the prompt and the response together; an adapter has its model's.
        """
        data = self._checked(self._quick.request("GET", f"{self.url}/v1/models"))
        try:
            rows = json.loads(data)["data"]
            told = {str(one["id"]): one.get("max_model_len") for one in rows}
            parents = {str(one["id"]): one.get("parent") for one in rows}
            found = {name: told[name] or told.get(str(parents[name])) for name in told}
            return {name: None if size is None else int(size) for name, size in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _garbage(data, "a list of models", error) from error

    def started(self) -> str | None:
        """Return when the server's process began, None where it does not tell.

        A server that was restarted has forgotten the weights it was given.
        """
        try:
            data = self._quick.request("GET", f"{self.url}/metrics").check()
        except (TransientError, RefusedByServerError):
            return None
        found = _STARTED.search(data)
        return None if found is None else found[1].decode("ascii", "replace")

    def load_adapter(self, name: str, folder: str) -> None:
        """Have it serve the LoRA adapter of a folder under this name, in place of a former one."""
        body = {"lora_name": name, "lora_path": folder, "load_inplace": True}
        self._post_weights("/v1/load_lora_adapter", body, folder)

    def reload(self, folder: str) -> None:
        """Have it take the weights of a Hugging Face folder that it can read too."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self._post_weights("/collective_rpc", body, folder)

    def forget_prefixes(self) -> None:
        """Have it drop keys and values that former weights computed, where it has the route.

        It only makes room: ``cache_salt`` keeps what other weights computed from being used.
        """
        try:
            self._post("/reset_prefix_cache", {})
        except RefusedRequestError as error:
            if error.status != 404:
                raise

    def close(self) -> None:
        """Close the kept connections."""
        self._slow.close()
        self._quick.close()

    def _post(self, route: str, body: Mapping[str, Any]) -> bytes:
        return self._checked(
            self._slow.request("POST", self.url + route, json.dumps(body).encode()), route
        )

    def _post_weights(self, route: str, body: Mapping[str, Any], folder: str) -> None:
        """Have it read a folder; a refusal names the folder, which vLLM leaves out of its words.

        Raises:
            RefusedRequestError: it did not take the weights.
            TransientError: no answer came, or one that may pass.
        """
        reply = self._slow.request("POST", self.url + route, json.dumps(body).encode())
        try:
            self._checked(reply, route)
        except (RefusedRequestError, TransientError) as error:
            if reply.status not in _NOT_TAKEN or _lacks_route(reply):
                raise
            raise RefusedRequestError(
                f"{self.url} must take the weights in {folder}, but {route} said: {_said(reply)}; "
                "that folder must be there on the server's machine too, readable for the server's "
                "user, and hold weights of the model that it serves",
                reply.status,
            ) from error

    def _checked(self, reply: Any, route: str = "/v1/models") -> bytes:
        try:
            data: bytes = reply.check()
        except RefusedByServerError as error:
            remedy = _ENABLED_BY.get(route, "") if _lacks_route(reply) else ""
            raise RefusedRequestError(
                f"{self.url}{route}: {error}{remedy}", reply.status
            ) from error
        return data


def completion_request(
    model: str,
    prompt: Seq[int],
    params: SamplingParams,
    max_tokens: int,
    written: int,
    seed: int,
    eos_ids: Seq[int],
    salt: str,
) -> dict[str, Any]:
    """Return the body that asks for one turn.

    Args:
        model: as the server knows it.
        prompt: ids of the prompt and all that stands behind it.
        params: how to sample.
        max_tokens: that are left of the budget.
        written: tokens of the response so far.
        seed: of this turn, int64.
        eos_ids: that end a sequence.
        salt: of the weights; keys and values computed under another salt are never used.
    """
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "min_tokens": max(0, min(max_tokens, params.min_new_tokens - written)),
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop": list(params.stops),
        "stop_token_ids": list(eos_ids),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
        "cache_salt": salt,
    }


def parse_completion(data: bytes, request: Mapping[str, Any]) -> Sampled:
    """Read the answer to a request of ``completion_request``.

    Raises:
        TransientError: it is not one.
        RefusedRequestError: the server changed the prompt, or does not return token ids.
    """
    try:
        choice = json.loads(data)["choices"][0]
        ids, told = choice.get("token_ids"), choice.get("logprobs")
        prompt, reason = choice.get("prompt_token_ids"), choice.get("finish_reason")
        if ids is None or told is None:
            raise RefusedRequestError(
                "a rollout server must return token ids and log-probs, got "
                f"{data[:120].decode('utf-8', 'replace')!r}; use vLLM 0.10.2 or later, or "
                "`research serve-policy`"
            )
        sampled = Sampled(
            [int(i) for i in ids], [float(x) for x in told["token_logprobs"]], reason == "length"
        )
        _check_sane(sampled, request["max_tokens"], reason)
    except RefusedRequestError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _garbage(data, "a completion", error) from error
    if prompt is not None and prompt != request["prompt"]:
        raise RefusedRequestError(
            f"the server must read the prompt as it was sent, {len(request['prompt'])} tokens, but "
            f"read {len(prompt)} others; start it without truncation"
        )
    return sampled


def _check_sane(sampled: Sampled, max_tokens: int, reason: Any) -> None:
    count = len(sampled.token_ids)
    if not 1 <= count <= max_tokens:
        raise ValueError(f"{count} tokens, but 1 to {max_tokens} were asked for")
    if len(sampled.logprobs) != count:
        raise ValueError(f"{len(sampled.logprobs)} log-probs for {count} tokens")
    if not all(math.isfinite(x) and _LOWEST <= x <= 1e-3 for x in sampled.logprobs):
        raise ValueError("log-probs that are none")
    if min(sampled.token_ids) < 0:
        raise ValueError("negative token ids")
    if reason not in ("stop", "length"):
        raise ValueError(f"the finish_reason {reason!r}")


def _lacks_route(reply: Any) -> bool:
    """Whether a 404 is about the route itself, and not about an adapter or a model."""
    return bool(reply.status == 404) and b"dapter" not in reply.body


def _said(reply: Any) -> str:
    """The status, and the message that vLLM and our server put into an error, or all it said."""
    try:
        said = str(json.loads(reply.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = reply.body.decode("utf-8", "replace").strip()
    return f"status {reply.status}, {' '.join(said.split())[:300]}"


def _garbage(data: bytes, what: str, error: Exception) -> TransientError:
    said = data[:120].decode("utf-8", "replace")
    return TransientError(
        f"the answer must be {what}, got {said!r} ({type(error).__name__}: {error})"
    )

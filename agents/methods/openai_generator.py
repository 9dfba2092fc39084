"""A language model behind HTTP: any server that speaks OpenAI's completions or chat completions.

Rule: a generation is what a server answered in full and in the right shape, or it carries an
error. Wire format: https://platform.openai.com/docs/api-reference ; the additions of vLLM:
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html .
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from research_rl.agents.methods.dialogue import rendered
from research_rl.agents.methods.generators import (
    ChatMessage,
    Generation,
    Generator,
    ModelInput,
    ToolCall,
    params_of_each,
    tell_once,
)
from research_rl.agents.policy import ChatTemplate, PolicyConfig, Tools, load_tokenizer
from research_rl.agents.types import ModelUnavailable, SamplingParams
from research_rl.envs.protocols import opened_by
from research_rl.envs.web import (
    Endpoints,
    NoAnswerError,
    RefusedByServerError,
    TransientError,
    Transport,
    base_url,
    key_for,
)

OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"
GO_ON = "Go on exactly where your last message ended, and do not repeat any of it."
"""What a server is told that would not let the model go on with its own message."""
_ROUTES = {"completions": "/completions", "chat": "/chat/completions"}

_ASK_FOR: dict[str, dict[str, Any]] = {
    "openai": {},
    "vllm": {"include_stop_str_in_output": True, "return_token_ids": True},
    "sglang": {"no_stop_trim": True},
}
"""Fields that make a server tell more; one that does not know them may refuse the request."""
_GO_ON_FIELDS: dict[str, dict[str, Any]] = {
    "vllm": {"add_generation_prompt": False, "continue_final_message": True},
    "sglang": {"continue_final_message": True},
}


class OpenAIGenerator(Generator):
    """Asks one or several servers for completions, many at once.

    Thread-safe. A request that fails in a way that may pass (connection, timeout, broken answer,
    status 408, 429, 500, 502, 503, 504) is tried again, on another url where there is one.

    Args:
        url: base url of a server, ``http://host:8000`` or ``http://host:8000/v1``, or several that
            serve the same model; requests are balanced, and a dead server is left out.
        model: the model's name as the server knows it.
        api: ``chat`` or ``completions``. Text is sent to completions as it is, and to chat as a
            user's message; chats must meet ``chat``, or a ``tokenizer`` that renders them.
        dialect: what the server understands beside the standard: ``openai`` nothing, ``vllm`` and
            ``sglang`` their own fields (token ids, stop strings kept, messages continued).
        tokenizer: Hugging Face id or folder. With it, tokens can be counted, and with
            ``api: completions`` chats are rendered here, which lets every server go on with a
            message that has begun.
        concurrency: requests under way at once.
        timeout: seconds one request may take.
        retry_window: seconds a request is tried again after failures that may pass.
        api_key: sent as ``Authorization: Bearer KEY``; None reads the variable
            ``OPENAI_API_KEY``, which keeps the key out of configuration files.
        extra: further fields of every request.
        tools: how a model is told of tools, and its calls are had. ``auto`` asks the server, with
            two requests of one token: ``fields`` where it shows the model ``tools``, ``text``
            where it refuses them or passes over them. Calls are read wherever they come.
    """

    def __init__(
        self,
        url: str | list[str],
        model: str,
        api: Literal["chat", "completions"] = "chat",
        dialect: Literal["openai", "vllm", "sglang"] = "openai",
        tokenizer: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        retry_window: float = 60.0,
        api_key: str | None = None,
        extra: dict[str, Any] | None = None,
        tools: Literal["auto", "fields", "text"] = "auto",
    ) -> None:
        _check(api, dialect, concurrency, timeout, retry_window)
        if tools not in ("auto", "fields", "text"):
            raise ValueError(f"tools must be auto, fields or text, got {tools!r}")
        urls = [url] if isinstance(url, str) else list(url)
        self.urls = [_versioned(one) for one in urls]
        if not self.urls or len(set(self.urls)) != len(self.urls):
            raise ValueError(f"url must name one server or several different ones, got {url!r}")
        self.model, self.api, self.dialect = model, api, dialect
        self.timeout, self.retry_window = timeout, retry_window
        self.concurrency, self.extra = concurrency, extra or {}
        keys = [api_key or key_for(one, OPENAI_KEY_VARIABLE) for one in self.urls]
        key = keys[0] if all(keys) else None
        self._transport = Transport(timeout, concurrency, key)
        self._endpoints = Endpoints(self.urls)
        own: Any = None if tokenizer is None else load_tokenizer(PolicyConfig(tokenizer))
        self._tokenizer, self._template = own, None if own is None else ChatTemplate(own)
        self.continues = api == "completions" or dialect in _GO_ON_FIELDS
        self.tools, self._offered = tools, tuple[Mapping[str, Any], ...]()
        self._answered = False
        """Whether any request was ever served: from then on a refusal is the input's fault."""

    def generate(
        self,
        inputs: Seq[ModelInput],
        params: SamplingParams | Seq[SamplingParams],
        seeds: Seq[int] | None = None,
    ) -> list[Generation]:
        """See Generator.generate.

        Raises:
            ModelUnavailable: no request of this call was answered within its retry window, or the
                server refused all of them and has never answered one.
            ValueError: a chat must go to completions, and there is no tokenizer to render it.
        """
        each = params_of_each(params, len(inputs))
        bodies = [
            self._body(one, each[row], None if seeds is None else seeds[row])
            for row, one in enumerate(inputs)
        ]
        if not bodies:
            return []
        stop = threading.Event()
        with ThreadPoolExecutor(min(self.concurrency, len(bodies))) as workers:
            try:
                asked = [
                    workers.submit(self._ask, body, one.stops, stop)
                    for body, one in zip(bodies, each, strict=True)
                ]
                answers = [one.result() for one in asked]
            except BaseException:
                stop.set()
                workers.shutdown(wait=False, cancel_futures=True)
                raise
        return self._judged(answers)

    def count(self, text: str) -> int | None:
        """Return the number of tokens of ``text``, None without a tokenizer."""
        if self._tokenizer is None:
            return None
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def offering(self, tools: Tools) -> OpenAIGenerator | None:
        """See Generator.offering; says in the log where the server cannot, and why."""
        if self.tools == "text":
            return None
        offering = copy.copy(self)
        offering._offered = tuple(tools)
        if self.api == "completions":
            return offering if self._template and self._template.takes_tools(tools) else None
        if self.tools == "fields":
            return offering
        asked: list[ChatMessage] = [{"role": "user", "content": "?"}]
        read, without = offering._probe(asked), self._probe(asked)
        if isinstance(without, RefusedByServerError):
            return None  # it refuses whatever is asked; what is asked in earnest says why
        if isinstance(read, RefusedByServerError) or (read is not None and read == without):
            why = read if isinstance(read, RefusedByServerError) else "it passes over them"
            tell_once(
                f"the model {self.model!r} at {self.urls[0]} is told of its tools in words, for "
                f"the server does not take `tools`: {why}"
            )
            return None
        return offering

    def takes_role(self, role: str) -> bool:
        """See Generator.takes_role; a server is asked once, with a request of one token."""
        if self.api == "completions" or role == "user" or self.tools == "text":
            return True
        user: ChatMessage = {"role": "user", "content": "?"}
        told: ChatMessage = {"role": role, "content": "?", "tool_call_id": "call_0"}
        refused = self._probe([user, {"role": "assistant", "content": "?"}, told])
        if not isinstance(refused, RefusedByServerError):
            return True
        if not isinstance(self._probe([user]), RefusedByServerError):
            tell_once(
                f"the model {self.model!r} at {self.urls[0]} reads what a tool says as the "
                f"user's messages, for the server refuses the role {role!r}: {refused}"
            )
        return False

    def opened(self, messages: Seq[ChatMessage]) -> str:
        """See Generator.opened; known where the chat is rendered here."""
        if self.api != "completions" or self._template is None:
            return ""
        return opened_by(self._template.render(messages, self._offered))

    def _probe(self, messages: list[ChatMessage]) -> int | RefusedByServerError | None:
        """The tokens that the server reads, None where it does not tell, or why it refuses."""
        body = self._body(messages, SamplingParams(1, temperature=0.0, stop=()), None)
        said = self._ask(body, (), threading.Event())
        if isinstance(said, Generation):
            return said.prompt_tokens
        if isinstance(said, RefusedByServerError):
            return said
        raise ModelUnavailable(self._why([said], refused=False)) from said

    def close(self) -> None:
        """Close the kept connections; a further call opens new ones."""
        self._transport.close()

    def _judged(self, answers: list[Generation | Exception]) -> list[Generation]:
        """The generations; failures are raised where nothing at all was served."""
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        self._answered = self._answered or len(failures) < len(answers)
        refused = all(isinstance(failure, RefusedByServerError) for failure in failures)
        if len(failures) == len(answers) and not (self._answered and refused):
            raise ModelUnavailable(self._why(failures, refused)) from failures[-1]
        return [
            Generation.failed(str(answer)) if isinstance(answer, Exception) else answer
            for answer in answers
        ]

    def _why(self, failures: Seq[Exception], refused: bool) -> str:
        failure, number = failures[-1], len(failures)
        where = f"the model {self.model!r} at {', '.join(self.urls)}"
        if refused:
            return (
                f"{where} must answer, but refused "
                f"{'the first request' if number == 1 else f'all of the first {number} requests'}: "
                f"{failure}; check the url, the "
                f"model's name, the api ({self.api}), the dialect ({self.dialect}) and the key"
            )
        return (
            f"{where} must answer, but none of the requests was served within "
            f"{self.retry_window:g} s of retries; last error: {failure}; start or mend the server, "
            "then run the same command again"
        )

    def _body(self, one: ModelInput, params: SamplingParams, seed: int | None) -> bytes:
        """The request for one input as JSON."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": params.max_response_tokens,
            "temperature": params.temperature,
        }
        if params.stops:
            fields["stop"] = list(params.stops)
        if params.top_p != 1.0:
            fields["top_p"] = params.top_p
        if params.top_k:
            fields["top_k"] = params.top_k
        if seed is not None and params.temperature > 0:
            fields["seed"] = seed % 2**31
        if self.api == "completions":
            fields["prompt"] = one if isinstance(one, str) else self._rendered(one)
        else:
            fields |= self._chat(one)
            if self._offered:
                fields["tools"] = [dict(tool) for tool in self._offered]
        return json.dumps(fields | _ASK_FOR[self.dialect] | self.extra).encode()

    def _chat(self, one: ModelInput) -> dict[str, Any]:
        """The messages, and how the server is to go on with a last one of the assistant."""
        messages = [{"role": "user", "content": one}] if isinstance(one, str) else list(one)
        if messages[-1]["role"] != "assistant":
            return {"messages": messages}
        if self.dialect in _GO_ON_FIELDS:
            return {"messages": messages, **_GO_ON_FIELDS[self.dialect]}
        return {"messages": [*messages, {"role": "user", "content": GO_ON}]}

    def _rendered(self, messages: Seq[ChatMessage]) -> str:
        """Chat messages as the text that the model reads."""
        if self._template is None:
            raise ValueError(
                "chat messages must go to api='chat', or meet a tokenizer that renders them for "
                "api='completions', got neither; set api, or tokenizer to the model's folder or "
                "Hugging Face id, or use the prompt 'base'"
            )
        text = rendered(self._template, messages, self._offered)
        # The server puts the beginning of a text in front of it itself.
        return text.removeprefix(self._tokenizer.bos_token or "")

    def _ask(
        self, body: bytes, stop_strings: Seq[str], cancelled: threading.Event
    ) -> Generation | Exception:
        """Ask until one url answers or the retry window ends; the last failure otherwise."""

        def send(url: str) -> Generation:
            data = self._transport.request("POST", url + _ROUTES[self.api], body).check()
            return _parsed(data, stop_strings)

        try:
            return self._endpoints.ask(send, self.retry_window, cancelled)
        except RefusedByServerError as error:
            return error
        except NoAnswerError as error:
            return TransientError(f"{error} (attempt {error.attempts})")


def _parsed(data: bytes, stop_strings: Seq[str]) -> Generation:
    """Read a response of either api.

    Raises:
        TransientError: it is not one; a proxy in between or a server that starts may pass.
    """
    try:
        reply = json.loads(data)
        choice = reply["choices"][0]
        message = choice.get("message") or {}
        text = message["content"] if "content" in message else choice.get("text", "")
        if "message" not in choice and "text" not in choice:
            raise KeyError("message")
        usage = reply.get("usage") or {}
        ids = choice.get("token_ids")
        token_ids = None if ids is None else tuple(int(i) for i in ids)
        prompt_tokens = usage.get("prompt_tokens")
        tokens = int(usage.get("completion_tokens") or len(token_ids or ()))
        text = "" if text is None else text  # a message of calls alone, or an empty one
        if not isinstance(text, str):
            raise TypeError(f"the text is of type {type(text).__name__}")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        said = data[:120].decode("utf-8", "replace")
        raise TransientError(
            f"the answer must be a completion, got {said!r} ({type(error).__name__}: {error})"
        ) from error
    thoughts = (message.get(name) for name in ("reasoning_content", "reasoning"))
    thought = next((one for one in thoughts if isinstance(one, str) and one), "")
    calls = _calls(message.get("tool_calls"))
    if thought and not text and not calls:  # the stop string, if any, stands in the thought
        thought, finish = _finished(thought, choice, stop_strings)
    else:
        text, finish = _finished(text, choice, stop_strings)
    return Generation(
        text, finish, tokens, prompt_tokens, token_ids, reasoning=thought, calls=calls
    )


def _calls(told: Any) -> tuple[ToolCall, ...]:
    """The calls of a message; one in a wrong form is a call of nothing, for the reply to say so."""
    found = []
    for one in told if isinstance(told, list) else ():
        call = one if isinstance(one, dict) else {"function": one}
        function = call.get("function")
        function = function if isinstance(function, dict) else {"arguments": function}
        given = function.get("arguments")
        text = given if isinstance(given, str) else json.dumps({} if given is None else given)
        found.append(ToolCall(str(call.get("id") or ""), str(function.get("name") or ""), text))
    return tuple(found)


def _finished(
    text: str, choice: Mapping[str, Any], stop_strings: Seq[str]
) -> tuple[str, Literal["stop", "eos", "length"]]:
    """The text with the stop string that ended it, as far as the server tells, and the finish."""
    if any(one in text for one in stop_strings):
        return text, "stop"
    if choice.get("finish_reason") == "length":
        return text, "length"
    matched = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's word, SGLang's word
    if isinstance(matched, str) and matched in stop_strings:
        return text + matched, "stop"
    return text, "eos"


def _versioned(url: str) -> str:
    """Return the url up to and with the version, without a route."""
    base = base_url(url, "/chat/completions", "/completions")
    return base if "/" in base.split("://", 1)[1] else f"{base}/v1"


def _check(api: str, dialect: str, concurrency: int, timeout: float, retry_window: float) -> None:
    if api not in _ROUTES:
        raise ValueError(f"api must be chat or completions, got {api!r}")
    if dialect not in _ASK_FOR:
        raise ValueError(f"dialect must be one of {', '.join(_ASK_FOR)}, got {dialect!r}")
    if concurrency < 1 or timeout <= 0 or retry_window < 0:
        raise ValueError(
            "concurrency must be at least 1, timeout positive and retry_window not negative, "
            f"got {concurrency}, {timeout} and {retry_window}"
        )


__all__ = ["ModelUnavailable", "OpenAIGenerator"]

"""Doubles for a language model: a generator that follows a script, a server that speaks OpenAI."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from doubles.fake_retrieval import StubServer

from research_rl.agents.methods.generators import Generation, Generator, ModelInput
from research_rl.agents.types import SamplingParams

Say = Callable[[ModelInput], str | Generation]


class Scripted(Generator):
    """Writes what ``say`` returns for an input; remembers every call.

    Args:
        say: the text, or the whole generation.
        tokenizer: whether it can count tokens: one a word.
    """

    def __init__(self, say: Say, tokenizer: bool = True) -> None:
        self.say, self.tokenizer = say, tokenizer
        self.calls: list[list[ModelInput]] = []
        self.params: list[SamplingParams | Seq[SamplingParams]] = []
        self.seeds: list[Seq[int] | None] = []

    def generate(
        self,
        inputs: Seq[ModelInput],
        params: SamplingParams | Seq[SamplingParams],
        seeds: Seq[int] | None = None,
    ) -> list[Generation]:
        """See Generator.generate."""
        self.calls.append(list(inputs))
        self.params.append(params)
        self.seeds.append(seeds)
        said = [self.say(one) for one in inputs]
        return [
            one if isinstance(one, Generation) else Generation(one, "eos", len(one.split()))
            for one in said
        ]

    def count(self, text: str) -> int | None:
        """Return the number of words."""
        return len(text.split()) if self.tokenizer else None


def flat(one: ModelInput) -> str:
    """All the text of an input."""
    return one if isinstance(one, str) else "\n".join(m["content"] for m in one)


def completion(text: str, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """The body of an answer that serves both apis."""
    choice = {"index": 0, "text": text, "finish_reason": finish, **fields}
    usage = {"prompt_tokens": 10, "completion_tokens": len(text.split())}
    return {"id": "x", "choices": [choice], "usage": usage}


def model_server(say: Callable[[dict[str, Any]], Any]) -> StubServer:
    """A server whose model is ``tiny``; ``say`` gets the request and gives a text or a reply.

    A reply is a (status, body) pair; see StubServer.
    """

    def answer(path: str, body: Any) -> tuple[int, Any]:
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, {"error": f"no {path}"}
        if body["model"] != "tiny":
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        said = say(body)
        if isinstance(said, tuple):
            return said
        reply = completion(said) if isinstance(said, str) else said
        if path.endswith("/chat/completions"):
            choice = reply["choices"][0]
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        return 200, reply

    return StubServer(answer)

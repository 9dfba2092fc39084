"""Sampling on rollout servers (vLLM, or ``research serve-policy``): token ids out, token ids in.

Each turn is one request: the prompt and all that stands behind it, as token ids. A server with a
prefix cache (vLLM has one by default) reads only what is new. No text crosses the wire, so nothing
is ever tokenised twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

from research_rl.agents.engines import TurnEnd, begin, resume, seed_at
from research_rl.agents.methods import OPENAI_KEY_VARIABLE
from research_rl.agents.policy import LMPolicy, is_untied_by_adapter
from research_rl.agents.types import Engine, OnStop, SamplingParams, Sequence
from research_rl.agents.web.client import (
    RefusedRequestError,
    RolloutClient,
    Sampled,
    completion_request,
)
from research_rl.agents.web.fleet import Fleet
from research_rl.envs.web import base_url, key_for

_GATHER = 0.005
"""Seconds in which those who stop are asked about together."""


class ServerEngine(Engine):
    """Samples on one or several servers that speak vLLM's protocol.

    ``sync`` gives the servers the policy's weights; every turn keeps the version that sampled it.
    A server that dies is taken out, the turns it had are sampled anew elsewhere from the last
    complete turn with the same seeds, and it is given the weights again when it comes back.

    Args:
        policy: whose weights the servers get, and whose tokenizer tells where a turn ends.
        url: of a server, or of several that serve the same model.
        model: its name as the servers know it (``--served-model-name``).
        weights: how they get the policy's weights: ``reload`` all of them from a folder,
            ``lora`` the adapter alone, ``fixed`` not at all.
        folder: a folder that this process writes and the servers read, under the same path.
        concurrency: requests under way at once.
        timeout: seconds that a turn, or a change of weights, may take.
        retry_window: seconds that a turn waits for a server to come back.
        api_key: sent as ``Authorization: Bearer KEY``; None reads ``OPENAI_API_KEY``.

    Raises:
        ValueError: an argument makes no sense.
        ImportError: urllib3 is not installed.
    """

    holds_weights = True

    def __init__(
        self,
        policy: LMPolicy,
        url: str | list[str],
        model: str,
        weights: Literal["reload", "lora", "fixed"] = "reload",
        folder: str | None = None,
        concurrency: int = 256,
        timeout: float = 600.0,
        retry_window: float = 300.0,
        api_key: str | None = None,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        _check(policy, urls, weights, folder, concurrency, timeout, retry_window)
        self._policy, self._concurrency = policy, concurrency
        clients = [
            RolloutClient(one, timeout, concurrency, api_key or key_for(one, OPENAI_KEY_VARIABLE))
            for one in urls
        ]
        where = None if folder is None else Path(folder).absolute()
        self.fleet = Fleet(policy, clients, model, weights, where, retry_window)
        """The servers, how they are, and which weights they have."""
        self._end = TurnEnd(policy, SamplingParams().stops)
        self._workers: list[ThreadPoolExecutor] = []  # of runs that are not over, or failed

    def sync(self, version: int) -> None:
        """Give the servers the policy's weights; see Engine.sync.

        Servers that cannot be reached are taken out. Under data parallelism one process writes and
        gives, the others wait.

        Raises:
            ModelUnavailable: no server took them.
            ValueError: a server refuses, e.g. because it serves another model.
        """
        self.fleet.sync(version)

    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run; what on_stop raises is raised as it is.

        Raises:
            ModelUnavailable: no server was left for longer than the retry window.
            ValueError: a server refuses what it is asked.
        """
        sequences, seed = begin(prompts, params, seeds)
        if not sequences:
            return []
        if self.fleet.version is None:
            self.sync(0)
        _check_room(self.fleet.room, max(map(len, prompts)), params.max_response_tokens)
        self._end = self._end.at(params.stops)
        rows = seed.tolist()
        cancelled = threading.Event()
        workers = ThreadPoolExecutor(min(self._concurrency, len(prompts)), "rollout")
        self._workers.append(workers)

        def ask(row: int) -> Future[tuple[Sampled, int]]:
            return workers.submit(self._turn, sequences[row], rows[row], params, cancelled)

        try:
            self._play(sequences, params, on_stop, ask)
        finally:  # after an error nobody waits for the turns under way
            cancelled.set()
            workers.shutdown(wait=False, cancel_futures=True)
        workers.shutdown()  # all are idle
        self._workers.remove(workers)
        return sequences

    def room(self) -> int | None:
        """See Engine.room; asks the servers, and knows nothing while none answers."""
        return self.fleet.ask_room()

    def close(self) -> None:
        """See Engine.close; waits for turns that a run left under way, at most ``timeout``."""
        while self._workers:
            self._workers.pop().shutdown()
        self.fleet.close()

    def _play(
        self,
        sequences: list[Sequence],
        params: SamplingParams,
        on_stop: OnStop,
        ask: Callable[[int], Future[tuple[Sampled, int]]],
    ) -> None:
        """Go on until every sequence is over; those that search wait, the others are sampled."""
        asked = {ask(row): row for row in range(len(sequences))}
        while asked:
            wait(asked, return_when=FIRST_COMPLETED)
            done, _ = wait(asked, timeout=_GATHER)
            rows = sorted(asked[future] for future in done)
            for future in done:
                self._append(sequences[asked.pop(future)], *future.result(), params)
            stopped = [(row, sequences[row]) for row in rows if sequences[row].finish != "length"]
            replies = on_stop(stopped) if stopped else []
            for (row, sequence), given in zip(stopped, replies, strict=True):
                if resume(sequence, given, params):
                    asked[ask(row)] = row

    def _append(
        self, sequence: Sequence, sampled: Sampled, version: int, params: SamplingParams
    ) -> None:
        """Add a turn up to where it ends; what a server wrote behind that is dropped."""
        for token, logprob in zip(sampled.token_ids, sampled.logprobs, strict=True):
            sequence.append_sampled(token, logprob)
            sequence.finish = self._end.of(sequence.turn_ids)
            if sequence.finish != "running":
                break
        sequence.versions.append(version)
        if sequence.finish == "running":
            full = len(sequence.response_ids) >= params.max_response_tokens
            if sampled.full and not full:
                raise RefusedRequestError(
                    f"a server must have room for {params.max_response_tokens} tokens behind a "
                    f"prompt, but one ended a turn at {len(sequence.response_ids)}; raise its "
                    "--max-model-len, or lower max_response_tokens"
                )
            sequence.finish = "length" if full else "eos"  # an end that only the server knows

    def _turn(
        self, sequence: Sequence, seed: int, params: SamplingParams, cancelled: threading.Event
    ) -> tuple[Sampled, int]:
        """Have one turn sampled, wherever there is a server; and the version of its weights."""
        version = self.fleet.version
        assert version is not None
        written = len(sequence.response_ids)
        request = completion_request(
            self.fleet.model,
            sequence.prompt_ids + sequence.response_ids,
            params,
            params.max_response_tokens - written,
            written,
            seed_at(seed, written),
            sorted(self._policy.eos_ids),
            self.fleet.salt(version),
        )
        return self.fleet.ask(lambda client: client.complete(request), cancelled), version


def _check_room(room: int | None, longest: int, budget: int) -> None:
    """Refuse, before anything is sampled, rollouts that could outgrow the servers' positions."""
    if room is None or longest + budget <= room:
        return
    left = room - longest
    ways = f"lower max_response_tokens to {left} or less" if left > 0 else "leave the prompt out"
    raise ValueError(
        f"prompt and max_response_tokens must fit in the rollout servers' {room} positions "
        f"together, got {longest} + {budget}; {ways}, or start the servers with a larger "
        "--max-model-len"
    )


def _check(
    policy: LMPolicy,
    urls: list[str],
    weights: str,
    folder: str | None,
    concurrency: int,
    timeout: float,
    retry_window: float,
) -> None:
    if not urls or len({base_url(url, "/v1") for url in urls}) != len(urls):
        raise ValueError(f"url must name one server or several different ones, got {urls!r}")
    if weights not in ("reload", "lora", "fixed"):
        raise ValueError(f"weights must be reload, lora or fixed, got {weights!r}")
    if weights != "fixed" and folder is None:
        raise ValueError(
            f"folder must name a folder that the servers can read where weights is {weights}, got "
            "none; set model.engine.folder, or weights: fixed for servers that are never updated"
        )
    if weights == "lora" and not hasattr(policy.model, "peft_config"):
        raise ValueError(
            "weights: lora must meet a policy with an adapter, got one without; set "
            "model.policy.lora, or weights: reload"
        )
    if weights != "fixed" and hasattr(policy.model, "peft_config"):
        base: Any = policy.model
        if is_untied_by_adapter(base.get_base_model()):
            raise ValueError(
                "rollout servers must be able to hold the policy, but they tie input and output "
                "embeddings, and one of them has an adapter here; take lm_head and embed_tokens "
                "out of model.policy.lora.target_modules, or sample with CachedEngine"
            )
    if concurrency < 1 or timeout <= 0 or retry_window < 0:
        raise ValueError(
            "concurrency must be at least 1, timeout positive and retry_window not negative, "
            f"got {concurrency}, {timeout} and {retry_window}"
        )

"""Sampling on rollout servers (vLLM, or ``research serve-policy``): token ids out, token ids in.

Each turn is one request: the prompt and all that stands behind it, as token ids. A server with a
prefix cache (vLLM has one by default) reads only what is new. No text crosses the wire, so nothing
is ever tokenised twice.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from research_rl.agents.engines import TurnEnd, begin, resume, seed_at
from research_rl.agents.methods import OPENAI_KEY_VARIABLE
from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import Engine, ModelUnavailable, OnStop, SamplingParams, Sequence
from research_rl.agents.web.client import (
    RefusedRequestError,
    RolloutClient,
    Sampled,
    completion_request,
)
from research_rl.agents.web.fleet import Fleet, Member
from research_rl.envs.web import TransientError

ADAPTER = "policy"
"""The name under which the servers know the LoRA adapter."""
_ATTEMPTS = 10
"""After so many failures of one turn its request is at fault, or every server is."""
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
        self._policy, self._model, self._weights = policy, model, weights
        self._folder = None if folder is None else Path(folder).absolute()
        self._concurrency, self._retry_window = concurrency, retry_window
        key = api_key or os.environ.get(OPENAI_KEY_VARIABLE) or None
        clients = [RolloutClient(one, timeout, concurrency, key) for one in urls]
        self._fleet = Fleet(clients, self._revive)
        self._end = TurnEnd(policy, SamplingParams().stop)
        self._syncing = threading.Lock()
        self._started: dict[str, str | None] = {}  # by url, when a server got the weights
        self.version: int | None = None
        """Of the weights that the servers have; None before the first ``sync``."""

    @property
    def fleet(self) -> Fleet:
        """The servers and how they are."""
        return self._fleet

    def sync(self, version: int) -> None:
        """Give the servers the policy's weights; see Engine.sync.

        Servers that cannot be reached are taken out. Under data parallelism one process writes and
        gives, the others wait.

        Raises:
            ModelUnavailable: no server took them.
            ValueError: a server refuses, e.g. because it serves another model.
        """
        failure = _from_first_rank(lambda: self._synced(version))
        if failure is not None:
            raise failure
        self.version = version
        if not _is_first_rank():
            for member in self._fleet.members:
                self._fleet.admit(member)

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
        if self.version is None:
            self.sync(0)
        self._end = self._end.at(params.stop)
        rows = seed.tolist()
        cancelled = threading.Event()
        workers = ThreadPoolExecutor(min(self._concurrency, len(prompts)), "rollout")

        def ask(row: int) -> Future[tuple[Sampled, int]]:
            return workers.submit(self._turn, sequences[row], rows[row], params, cancelled)

        try:
            self._play(sequences, params, on_stop, ask)
        finally:  # after an error nobody waits for the turns under way
            cancelled.set()
            workers.shutdown(wait=False, cancel_futures=True)
        return sequences

    def close(self) -> None:
        """Close the connections to the servers."""
        self._fleet.close()

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
        version = self.version
        assert version is not None
        written = len(sequence.response_ids)
        request = completion_request(
            self._name,
            sequence.prompt_ids + sequence.response_ids,
            params,
            params.max_response_tokens - written,
            written,
            seed_at(seed, written),
            sorted(self._policy.eos_ids),
            version,
        )
        failures: list[str] = []
        while len(failures) < _ATTEMPTS:
            member = self._fleet.acquire(time.monotonic() + self._retry_window, cancelled)
            try:
                sampled = member.client.complete(request)
            except TransientError as error:
                if error.broken:
                    failures.append(f"{member.client.url}: {error}")
                    self._fleet.failed(member, error)
                else:
                    self._fleet.released(member)
                    cancelled.wait(min(error.retry_after or 0.2, 5.0))
            except RefusedRequestError as error:
                # a server that was restarted does not know the adapter, and is given it again
                if self._weights != "lora" or error.status != 404 or len(failures) > 1:
                    self._fleet.released(member)
                    raise
                failures.append(str(error))
                self._fleet.failed(member, error)
            except BaseException:
                self._fleet.released(member)
                raise
            else:
                self._fleet.succeeded(member)
                return sampled, version
        raise ModelUnavailable(
            f"a turn must be sampled within {_ATTEMPTS} attempts, but all failed; the last one: "
            f"{failures[-1]}; mend the server"
        )

    @property
    def _name(self) -> str:
        return ADAPTER if self._weights == "lora" else self._model

    def _revive(self, member: Member) -> None:
        """Give a server that is well again the weights of now, and let it be asked."""
        with self._syncing:
            self._give(member)

    def _synced(self, version: int) -> Exception | None:
        """Give the servers the weights where they lack them; what went wrong."""
        try:
            if version == self.version and self._all_still_run():
                return None
            with self._syncing:
                self._write(version)
                self.version = version
                self._give_all()
            deadline = time.monotonic() + self._retry_window
            self._fleet.released(self._fleet.acquire(deadline, threading.Event()))
        except Exception as error:
            return error
        return None

    def _give_all(self) -> None:
        """Give every server the weights; those that cannot be reached are taken out."""
        members = self._fleet.members

        def give(member: Member) -> Exception | None:
            try:
                self._give(member)
            except (TransientError, RefusedRequestError) as error:
                self._fleet.refuse(member, error)
                return error
            return None

        with ThreadPoolExecutor(len(members)) as workers:
            failures = list(workers.map(give, members))
        for failure in failures:
            if isinstance(failure, RefusedRequestError):
                raise failure

    def _give(self, member: Member) -> None:
        """Make one server sample from the weights of now."""
        client, where = member.client, self._where()
        if self._weights == "lora":
            assert where is not None
            client.load_adapter(ADAPTER, where)
        if self._name not in (known := client.models()):
            raise RefusedRequestError(
                f"{client.url} must serve the model {self._name!r}, but serves "
                f"{', '.join(known) or 'none'}; set model.engine.model to one of them"
            )
        if self._weights == "reload":
            assert where is not None
            client.reload(where)
        if self._weights != "fixed":
            client.forget_prefixes()
        self._started[client.url] = client.started()
        self._fleet.admit(member)

    def _all_still_run(self) -> bool:
        """Whether every server that is up is known to be the process that got the weights."""
        if self._weights == "fixed":
            return True
        up = [member for member in self._fleet.members if member.up]
        known = [self._started.get(member.client.url) for member in up]
        return bool(up) and all(
            before is not None and member.client.started() == before
            for member, before in zip(up, known, strict=True)
        )

    def _where(self) -> str | None:
        """The folder of the weights of now."""
        if self._folder is None:
            return None
        return str(self._folder / f"weights-{self.version:06d}")

    def _write(self, version: int) -> None:
        """Write the weights for the servers, whole or not at all; drop those of before."""
        if self._folder is None or version == self.version:
            return
        target = self._folder / f"weights-{version:06d}"
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if self._weights == "lora":
            model: Any = self._policy.model
            model.save_pretrained(str(partial))  # the adapter alone
        else:
            self._policy.save_pretrained(partial)
        partial.replace(target)
        for old in self._folder.glob("weights-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)


def _is_first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _from_first_rank(make: Callable[[], Exception | None]) -> Exception | None:
    """What the first rank makes, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return make()
    told: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told, src=0)
    made: Exception | None = told[0]
    return made


def _check(
    policy: LMPolicy,
    urls: list[str],
    weights: str,
    folder: str | None,
    concurrency: int,
    timeout: float,
    retry_window: float,
) -> None:
    if not urls or len(set(urls)) != len(urls):
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
    if concurrency < 1 or timeout <= 0 or retry_window < 0:
        raise ValueError(
            "concurrency must be at least 1, timeout positive and retry_window not negative, "
            f"got {concurrency}, {timeout} and {retry_window}"
        )


__all__ = ["ADAPTER", "ServerEngine"]

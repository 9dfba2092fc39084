"""A pool of rollout servers that hold one model, and the version of the weights that each one has.

A server is asked only when it has been given the weights of now. One that fails is taken out; it is
looked at again and again in a thread of its own, and comes back once it is well and has been given
the weights anew, for it may have been restarted.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import ModelUnavailable
from research_rl.agents.web.client import RefusedRequestError, RolloutClient
from research_rl.envs.system import clear_partial, folder_in_place
from research_rl.envs.web import Endpoint, Endpoints, NoAnswerError, TransientError

log = logging.getLogger(__name__)
_ATTEMPTS = 10
"""After so many failures of one request it is at fault, or every server is."""
_T = TypeVar("_T")


def adapter_name(model: str) -> str:
    """Return the name under which servers know the LoRA adapter: never that of the model itself."""
    return f"{model}-adapter"


class Fleet:
    """Servers of one model; thread-safe.

    Args:
        policy: whose weights they get.
        clients: one for each server, of different urls.
        model: its name as the servers know it.
        weights: how they get the policy's weights: reload, lora or fixed.
        folder: where the weights are written; None for fixed.
        retry_window: seconds that a request waits for a server to come back.
    """

    def __init__(
        self,
        policy: LMPolicy,
        clients: Sequence[RolloutClient],
        model: str,
        weights: str,
        folder: Path | None,
        retry_window: float,
    ) -> None:
        self._policy, self._weights, self._folder = policy, weights, folder
        self._clients = {client.url: client for client in clients}
        self._endpoints = Endpoints(list(self._clients), revive=self._revive)
        self._retry_window = retry_window
        self._giving = threading.Lock()
        self._proved = False  # the first folder of weights was read back
        self._started: dict[str, str | None] = {}  # by url, when a server got the weights
        self._rooms: dict[str, int | None] = {}  # by url, its positions
        self._token = secrets.token_hex(8)  # of this fleet; chance, so that no other has it
        self.model = adapter_name(model) if weights == "lora" else model
        """The name of what is asked for."""
        self.version: int | None = None
        """Of the weights that the servers have; None before the first ``sync``."""

    @property
    def members(self) -> list[Endpoint]:
        """The servers and how they are."""
        return self._endpoints.members

    @property
    def room(self) -> int | None:
        """Positions of the server that has fewest, for a prompt and its response; None: not told.

        They are known of servers that were given weights, or asked by ``ask_room``.
        """
        return min((size for size in self._rooms.values() if size is not None), default=None)

    def salt(self, version: int) -> str:
        """Return the ``cache_salt`` of weights: that of no other version, and of no other fleet.

        A server may outlive a run. The next run, or the same one resumed, counts its versions from
        the same numbers, and its weights are others.
        """
        return f"weights-{self._token}-{version}"

    def ask_room(self) -> int | None:
        """Return ``room`` after asking every server; one that does not answer is left out.

        What is wrong with it is told when it is given weights.
        """
        for url, client in self._clients.items():
            try:
                served = client.models()
            except (TransientError, RefusedRequestError) as error:
                log.info("%s does not tell how many positions it has: %s", url, error)
                continue
            self._rooms[url] = max((n for n in served.values() if n is not None), default=None)
        return self.room

    def ask(self, request: Callable[[RolloutClient], _T], cancelled: threading.Event) -> _T:
        """Return what the least busy server answers, or another one where it fails.

        Args:
            request: what it is asked.
            cancelled: set when nobody waits for this any more.

        Raises:
            ModelUnavailable: no server was left for longer than the retry window, or all failed.
            RefusedRequestError: a server will not do it.
        """
        forgotten = 0

        def send(url: str) -> _T:
            nonlocal forgotten
            try:
                return request(self._clients[url])
            except RefusedRequestError as error:
                # a server that was restarted does not know the adapter, and is given it again
                if self._weights != "lora" or error.status != 404 or forgotten > 1:
                    raise
                forgotten += 1
                raise TransientError(str(error)) from error

        try:
            return self._endpoints.ask(send, self._retry_window, cancelled, _ATTEMPTS)
        except NoAnswerError as error:
            if error.failures < _ATTEMPTS:
                raise self._none_left() from error
            raise ModelUnavailable(
                f"a turn must be sampled within {_ATTEMPTS} attempts, but all failed; the last "
                f"ones: {error}; mend the server"
            ) from error

    def sync(self, version: int) -> None:
        """Give the servers the policy's weights where they lack them; see Engine.sync.

        Raises:
            ModelUnavailable: no server took them.
            ValueError: a server refuses, e.g. because it serves another model.
        """
        failure, ready = _from_first_rank(lambda: self._synced(version))
        if failure is not None:
            raise failure
        self.version = version
        if not _is_first_rank():
            for url in self._clients:
                if url in ready:
                    self._endpoints.readied(url)
                else:  # it may well answer, from weights of before
                    self._endpoints.take_out(url, "it was not given the weights of now")

    def close(self) -> None:
        """Look at no server any more, and close the connections; further calls begin both anew."""
        self._endpoints.close()
        for client in self._clients.values():
            client.close()

    def _none_left(self) -> ModelUnavailable:
        told = "; ".join(f"{m.url}: {m.last_error or 'not asked yet'}" for m in self.members)
        return ModelUnavailable(
            f"a rollout server must be left that answers, got none ({told}); start or mend one"
        )

    def _revive(self, url: str) -> None:
        """Give a server that is well again the weights of now, and let it be asked."""
        self._clients[url].check_health()
        with self._giving:
            self._give(url)

    def _synced(self, version: int) -> tuple[Exception | None, list[str]]:
        """Write the weights and give them to all; what went wrong, and the urls that have them."""
        try:
            if version != self.version or not self._all_still_run():
                with self._giving:
                    self._write(version)
                    self.version = version
                    self._give_all()
                self._endpoints.wait_for_one(self._retry_window)
        except NoAnswerError:
            return self._none_left(), []
        except Exception as error:
            return error, []
        return None, [member.url for member in self.members if member.up]

    def _give_all(self) -> None:
        """Give every server the weights; those that cannot be reached are taken out.

        One that could not use them (status 500) is taken out too, unless none ever took any: then
        waiting is no use.
        """

        def give(url: str) -> Exception | None:
            try:
                self._give(url)
            except (TransientError, RefusedRequestError) as error:
                self._endpoints.take_out(url, str(error))
                return error
            return None

        with ThreadPoolExecutor(len(self._clients)) as workers:
            failures = list(workers.map(give, self._clients))
        for failure in failures:
            if isinstance(failure, RefusedRequestError) and (
                failure.status < 500 or not self._started
            ):
                raise failure

    def _give(self, url: str) -> None:
        """Make one server sample from the weights of now."""
        client, where = self._clients[url], self._where()
        if self._weights == "lora":
            assert where is not None
            client.load_adapter(self.model, where)
        if self.model not in (known := client.models()):
            raise RefusedRequestError(
                f"{url} must serve the model {self.model!r}, but serves "
                f"{', '.join(known) or 'none'}; set model.engine.model to one of them"
            )
        self._rooms[url] = known[self.model]
        if self._weights == "reload":
            assert where is not None
            client.reload(where)
        if self._weights != "fixed":
            client.forget_prefixes()
        self._started[url] = client.started()
        self._endpoints.readied(url)

    def _all_still_run(self) -> bool:
        """Whether every server that is up is known to be the process that got the weights."""
        if self._weights == "fixed":
            return True
        up = [member.url for member in self.members if member.up]
        known = [self._started.get(url) for url in up]
        return bool(up) and all(
            before is not None and self._clients[url].started() == before
            for url, before in zip(up, known, strict=True)
        )

    def _where(self) -> str | None:
        """The folder of the weights of now."""
        return None if self._folder is None else str(self._folder / f"weights-{self.version:06d}")

    def _write(self, version: int) -> None:
        """Write the weights for the servers, whole or not at all; drop those of before."""
        if self._folder is None or version == self.version:
            return
        target = self._folder / f"weights-{version:06d}"
        clear_partial(self._folder)
        with folder_in_place(target) as partial:
            if self._weights == "lora":
                model: Any = self._policy.model
                model.save_pretrained(str(partial))  # the adapter alone
            else:
                self._policy.save_pretrained(partial)
                if not self._proved:  # what is written later is written alike
                    self._policy.check_written(partial)
                    self._proved = True
        for old in self._folder.glob("weights-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)


def _is_first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _from_first_rank(make: Callable[[], _T]) -> _T:
    """What the first rank makes, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return make()
    told: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told, src=0)
    made: _T = told[0]
    return made

"""Batches of concurrent searches for one index, formed off the event loop.

While a batch is being searched the next one gathers, so waiting costs something only when the index
is idle. Rule: a request gets what it would have got alone. Only requests for the same number of
passages share a batch, and when a batch fails its requests are searched one by one, so that one
poisoned query cannot fail the others.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from research_rl.envs.types import Passage, Results, RetrieverUnavailable

_SHARES = 16
SearchFn = Callable[[Sequence[str], int], Results]


class OverloadedError(RuntimeError):
    """More queries wait than the server accepts; to be asked again later."""


@dataclass(eq=False)
class _Waiting:
    queries: tuple[str, ...]
    k: int
    done: asyncio.Future[Results]
    large: bool = False
    arrived: float = field(default_factory=time.monotonic)


class Coalescer:
    """Searches for many callers at once.

    Args:
        search: the retriever's search, called in one thread of its own.
        max_batch: queries in one call of ``search``. A larger request is searched in parts, and in
            parts of a sixteenth while others wait, who then need not wait for all of it.
        max_wait: seconds the first request of a batch waits for others, while there are others.
        max_pending: queries that may wait before further ones are refused with ``OverloadedError``.
        observe: called after each search with the number of distinct queries and its seconds.
    """

    def __init__(
        self,
        search: SearchFn,
        max_batch: int = 256,
        max_wait: float = 0.002,
        max_pending: int = 16384,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._search = search
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_pending = max_pending
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._thread = SearchThread()
        self._closing = False
        self._company = False
        self._last_end = 0.0
        self._last_seconds = 0.0
        self.searching = False
        self.failure = ""

    @property
    def pending(self) -> int:
        """Queries that wait for a search."""
        return sum(len(waiting.queries) for waiting in self._waiting)

    async def submit(self, queries: Sequence[str], k: int) -> Results:
        """Return the ``k`` best passages of each query.

        Raises:
            OverloadedError: too many queries wait, or the server is stopping.
            Exception: whatever the search of these queries raised.
        """
        if len(queries) <= self._max_batch:
            return await self._submit(queries, k)
        found: Results = []
        while len(found) < len(queries):
            crowded = self._waiting or self._company or self.searching
            part = max(1, self._max_batch // _SHARES) if crowded else self._max_batch
            found += await self._submit(queries[len(found) : len(found) + part], k, large=True)
        return found

    async def _submit(self, queries: Sequence[str], k: int, large: bool = False) -> Results:
        if self._closing:
            raise OverloadedError("the server is stopping")
        if self._waiting and self.pending + len(queries) > self._max_pending:
            raise OverloadedError(f"{self.pending} queries wait, at most {self._max_pending} may")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(tuple(queries), k, loop.create_future(), large)
        self._waiting.append(waiting)
        self._arrived.set()
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return await waiting.done

    async def close(self) -> None:
        """Search for whoever waits still, then stop."""
        self._closing = True
        self._arrived.set()
        if self._runner is not None:
            await self._runner
        self._thread.close()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._waiting and self._closing:
                return
            await self._gather()
            batch = self._take()
            if not self._waiting and not self._closing:
                self._arrived.clear()
            if batch:
                await self._answer(batch)
                self._company = len(batch) > 1 or bool(self._waiting)

    async def _gather(self) -> None:
        """Wait until a batch is full or its first request has waited long enough.

        A lone caller never waits. Right after a search the wait is a quarter of that search's time,
        at most ``max_wait``: who was just answered asks again at once and would else miss each
        batch by a moment.
        """
        if not self._company:
            return
        linger = self._last_end + min(self._max_wait, self._last_seconds / 4)
        while self._waiting and not self._closing and self.pending < self._max_batch:
            deadline = max(self._waiting[0].arrived + self._max_wait, linger)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            alarm = asyncio.get_running_loop().call_later(left, self._arrived.set)
            await self._arrived.wait()
            alarm.cancel()

    def _take(self) -> list[_Waiting]:
        """Remove and return requests for one ``k``, in order of arrival, up to a full batch."""
        batch: list[_Waiting] = []
        kept: deque[_Waiting] = deque()
        size = 0
        for waiting in self._waiting:
            if waiting.done.done():  # its caller has given up
                continue
            fits = not batch or size + len(waiting.queries) <= self._max_batch
            if waiting.large and any(other.large for other in batch):
                fits = False  # parts of many large requests together would be one large search
            if fits and (not batch or waiting.k == batch[0].k):
                batch.append(waiting)
                size += len(waiting.queries)
            else:
                kept.append(waiting)
        self._waiting = kept
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            found = await self._search_together(batch)
        except Exception as error:
            if len(batch) == 1 or isinstance(error, RetrieverUnavailable):
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)
            else:
                for waiting in batch:
                    await self._answer([waiting])
            return
        for waiting in batch:
            if not waiting.done.done():
                waiting.done.set_result([found[query] for query in waiting.queries])

    async def _search_together(self, batch: list[_Waiting]) -> dict[str, list[Passage]]:
        """Return the passages of each distinct query of the batch."""
        queries = list(dict.fromkeys(query for waiting in batch for query in waiting.queries))
        started = time.monotonic()
        self.searching = True
        try:
            results = await self._thread.call(lambda: self._search(queries, batch[0].k))
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.searching = False
            self._last_end = time.monotonic()
            self._last_seconds = self._last_end - started
        self.failure = ""
        if self._observe is not None:
            self._observe(len(queries), self._last_seconds)
        return dict(zip(queries, results, strict=True))


class SearchThread:
    """One lasting daemon thread: FAISS keeps its OpenMP team, and a hung search cannot keep the
    process from ending."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, work: Callable[[], Results]) -> Results:
        """Return what ``work`` returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Results] = loop.create_future()

        def job() -> None:
            try:
                result = work()
            except BaseException as error:
                _tell(loop, future, error)
            else:
                _tell(loop, future, result)

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="search", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return await future

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Results],
    outcome: Results | BaseException,
) -> None:
    def settle() -> None:
        if future.done():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)

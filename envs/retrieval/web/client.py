"""A retriever that asks servers over HTTP, in the dialect they speak.

Rule: ``search`` returns what a server answered in full and in the right shape, or it raises
``RetrieverUnavailable`` naming the url, the attempts, the last error and the way to resume.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, Literal, Self, TypeVar

from research_rl.envs.retrieval.web.dialects import DIALECTS, Dialect
from research_rl.envs.retrieval.web.json_checks import (
    WireError,
    check_queries,
    dump_json,
    parse_json,
)
from research_rl.envs.retrieval.web.probe import detect_dialect
from research_rl.envs.system import scalar_text
from research_rl.envs.types import Passage, Results, Retriever, RetrieverUnavailable, check_search
from research_rl.envs.web import (
    KEY_VARIABLE,
    Endpoints,
    NoAnswerError,
    RefusedByServerError,
    TooLargeError,
    TransientError,
    Transport,
    base_url,
    key_for,
)

_T = TypeVar("_T")
DialectName = Literal[
    "auto", "research", "research-single", "search-r1", "skyrl", "r1-searcher", "zerosearch", "rllm"
]


class RemoteRetriever(Retriever):
    """Searches by asking one or several retrieval servers.

    Thread-safe; pickles to its arguments; connections are opened at the first search, anew in each
    process, and closed by ``close`` or at the end of a with block. Equal queries of one call are
    asked once.

    Args:
        url: base url of a server, or several.
        dialect: what the servers speak; ``auto`` finds out at the first search.
        mode: with several urls, ``replicated`` when each holds the whole index (requests are
            balanced and a dead server is left out until it is back), or ``sharded`` when each holds
            a part (all are asked, the best scores win, and none may be missing).
        timeout: seconds one request may take.
        retry_window: seconds a search is tried again after failures that may pass (connection,
            timeout, broken answer, status 408, 429, 500, 502, 503, 504).
        max_batch: queries in one request; larger searches go out in parallel parts, and a part that
            the server finds too large (413) in halves.
        connections: requests under way at once.
        api_key: sent as ``Authorization: Bearer KEY``; None reads the variable
            ``RESEARCH_API_KEY``, which keeps the key out of configuration files.
        allow_empty: whether a server may find nothing for a query, as lexical search does; a dense
            index always finds something, so by default an empty list is an error.
    """

    def __init__(
        self,
        url: str | list[str],
        dialect: DialectName = "auto",
        mode: Literal["replicated", "sharded"] = "replicated",
        timeout: float = 60.0,
        retry_window: float = 120.0,
        max_batch: int = 512,
        connections: int = 16,
        api_key: str | None = None,
        allow_empty: bool = False,
    ) -> None:
        _check_arguments(dialect, mode, timeout, retry_window, max_batch, connections)
        urls = [url] if isinstance(url, str) else list(url)
        self.urls = [_server_url(one, dialect) for one in urls]
        if not self.urls or len(set(self.urls)) != len(self.urls):
            raise ValueError(f"url must name one server or several different ones, got {url!r}")
        self.mode = mode
        self.timeout = timeout
        self.retry_window = retry_window
        self.max_batch = max_batch
        self.connections = connections
        self.allow_empty = allow_empty
        self._api_key = api_key
        self._dialect_name: DialectName = dialect
        self._lock = threading.Lock()
        self._runtime: _Runtime | None = None
        if dialect != "auto":
            self._check_mode(DIALECTS[dialect])

    def search(self, queries: Sequence[str], k: int) -> Results:
        """Return the ``k`` best passages of each query, best first.

        Raises:
            TypeError: ``queries`` is one text, or ``k`` no integer.
            ValueError: a query that is no text, or ``k`` below 1.
            RetrieverUnavailable: no full and right answer within the retry window, or the server
                refuses, as ours does an empty query unless it has ``--empty-query search``.
        """
        check_search(queries, k)
        queries = [scalar_text(q) if isinstance(q, str) else q for q in queries]
        check_queries(queries)
        distinct = list(dict.fromkeys(queries))
        if not distinct:
            return []
        runtime = self._connect()
        dialect = runtime.dialect(lambda: self._detect(runtime))
        size = self.max_batch if dialect.batched else 1
        parts = [distinct[start : start + size] for start in range(0, len(distinct), size)]
        answers = self._ask_all(runtime, dialect, parts, k)
        found = dict(zip(distinct, _merge(answers, k), strict=True))
        return [list(found[query]) for query in queries]

    def close(self) -> None:
        """Close the connections and end the threads; a further search begins new ones."""
        with self._lock:
            runtime, self._runtime = self._runtime, None
        if runtime is not None and runtime.pid == os.getpid():  # a fork has none of its threads
            runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteRetriever:
        return self

    def __reduce__(self) -> tuple[Callable[..., RemoteRetriever], tuple[Any, ...]]:
        return type(self), (
            self.urls,
            self._dialect_name,
            self.mode,
            self.timeout,
            self.retry_window,
            self.max_batch,
            self.connections,
            self._api_key,
            self.allow_empty,
        )

    def __repr__(self) -> str:
        return f"RemoteRetriever({self.urls}, dialect={self._dialect_name!r}, mode={self.mode!r})"

    def _connect(self) -> _Runtime:
        """Return this process's connections."""
        with self._lock:
            if self._runtime is None or self._runtime.pid != os.getpid():
                # several urls share their connections, so each must be one that gets the key
                keys = [self._api_key or key_for(url, KEY_VARIABLE) for url in self.urls]
                key = keys[0] if all(keys) else None
                transport = Transport(self.timeout, self.connections, key)
                groups = [[url] for url in self.urls] if self.mode == "sharded" else [self.urls]
                self._runtime = _Runtime(transport, groups, self.connections)
            return self._runtime

    def _detect(self, runtime: _Runtime) -> Dialect:
        """Return the dialect the servers speak."""
        if self._dialect_name != "auto":
            return DIALECTS[self._dialect_name]
        dialect = self._attempt(
            runtime.groups[0], lambda url: detect_dialect(runtime.transport, url), threading.Event()
        )
        self._check_mode(dialect)
        return dialect

    def _check_mode(self, dialect: Dialect) -> None:
        if self.mode == "sharded" and not dialect.scored:
            raise ValueError(
                "mode=sharded must have scores to merge by, "
                f"and the dialect {dialect.name} carries none; use another dialect"
            )

    def _ask_all(
        self, runtime: _Runtime, dialect: Dialect, parts: list[list[str]], k: int
    ) -> list[Results]:
        """Return for each group of servers the passages of all parts, in order."""
        stop = threading.Event()

        def ask(endpoints: Endpoints, part: list[str]) -> Results:
            try:
                return self._attempt(
                    endpoints, lambda url: self._post(runtime, dialect, url, part, k), stop
                )
            except RetrieverUnavailable as error:
                if len(part) == 1 or not isinstance(error.__cause__, TooLargeError):
                    raise
            half = len(part) // 2
            return [*ask(endpoints, part[:half]), *ask(endpoints, part[half:])]

        jobs = [(endpoints, part) for endpoints in runtime.groups for part in parts]
        if len(jobs) == 1:
            return [ask(*jobs[0])]
        futures = [runtime.workers.submit(ask, *job) for job in jobs]
        answers = iter(_results(futures, stop))
        return [[row for _ in parts for row in next(answers)] for _ in runtime.groups]

    def _post(
        self, runtime: _Runtime, dialect: Dialect, url: str, queries: list[str], k: int
    ) -> Results:
        """Ask one server once."""
        body = dump_json(dialect.encode_request(queries, k))
        data = runtime.transport.request("POST", url + dialect.route, body).check()
        try:
            reply = parse_json(data)
        except WireError as error:
            raise TransientError(str(error)) from error
        results = dialect.decode_response(reply, queries, k)
        if not self.allow_empty and not all(results):
            empty = queries[next(i for i, row in enumerate(results) if not row)]
            raise WireError(
                f"no passage for the query {empty[:80]!r}; where the server may find nothing, "
                "set allow_empty=True"
            )
        return results

    def _attempt(self, endpoints: Endpoints, ask: Callable[[str], _T], stop: threading.Event) -> _T:
        """Return what ``ask`` returns for one of the urls, tried until the retry window ends."""
        started = time.monotonic()
        asked: list[str] = []

        def send(url: str) -> _T:
            asked.append(url)
            try:
                return ask(url)
            except WireError as error:
                raise RefusedByServerError(str(error)) from error

        try:
            return endpoints.ask(send, self.retry_window, stop)
        except (NoAnswerError, RefusedByServerError) as error:
            refused = isinstance(error, RefusedByServerError)
            where = asked[-1:] if refused else endpoints.urls
            raise self._unavailable(where, len(asked), started, str(error)) from error

    def _unavailable(
        self, urls: list[str], attempts: int, started: float, error: str
    ) -> RetrieverUnavailable:
        seconds = time.monotonic() - started
        return RetrieverUnavailable(
            f"the retriever at {', '.join(urls)} (dialect {self._dialect_name}) must answer, got "
            f"no valid answer in {attempts} attempts within {seconds:.1f} s; last error: {error}; "
            "mend or restart the server (research index serve INDEX), then resume the run from its "
            "last checkpoint (--ckpt_path last)"
        )


class _Runtime:
    """What a process holds open: connections, circuits, threads and the dialect found."""

    def __init__(self, transport: Transport, groups: list[list[str]], threads: int) -> None:
        self.pid = os.getpid()
        self.transport = transport
        self.groups = [Endpoints(urls) for urls in groups]
        self.workers = ThreadPoolExecutor(threads, thread_name_prefix="retriever")
        self._dialect: Dialect | None = None
        self._lock = threading.Lock()

    def dialect(self, detect: Callable[[], Dialect]) -> Dialect:
        """Return the servers' dialect, asked for once."""
        with self._lock:
            if self._dialect is None:
                self._dialect = detect()
            return self._dialect

    def close(self) -> None:
        """Close connections, and threads after what they are doing."""
        self.workers.shutdown(cancel_futures=True)
        self.transport.close()


def _results(futures: list[Future[Results]], stop: threading.Event) -> list[Results]:
    """Return all results in order; the first failure stops the others and is raised."""
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((future for future in done if future.exception() is not None), None)
        return [future.result() for future in ([failed] if failed else futures)]
    finally:
        stop.set()
        for future in futures:
            future.cancel()


def _merge(answers: list[Results], k: int) -> Results:
    """Return for each query the best ``k`` of what the groups found; ties keep the urls' order."""
    if len(answers) == 1:
        return answers[0]

    def best(rows: tuple[list[Passage], ...]) -> list[Passage]:
        passages = [passage for row in rows for passage in row]
        return sorted(passages, key=lambda passage: -passage.score)[:k]

    return [best(rows) for rows in zip(*answers, strict=True)]


def _server_url(url: str, dialect: str) -> str:
    """Return ``url`` without a trailing slash or a route of its dialect."""
    base = base_url(url)
    for known in DIALECTS.values():
        if base.endswith(known.route):
            speakers = [one.name for one in DIALECTS.values() if one.route == known.route]
            if dialect not in ("auto", *speakers):
                raise ValueError(
                    f"url {url!r} ends in {known.route}, which the dialect {dialect} does not "
                    f"have; use the dialect {' or '.join(speakers)}, or the url without the route"
                )
            return base_url(base, known.route)
    return base


def _check_arguments(
    dialect: str, mode: str, timeout: float, retry_window: float, max_batch: int, connections: int
) -> None:
    if dialect not in ("auto", *DIALECTS):
        raise ValueError(f"dialect must be one of auto, {', '.join(DIALECTS)}, got {dialect!r}")
    if mode not in ("replicated", "sharded"):
        raise ValueError(f"mode must be replicated or sharded, got {mode!r}")
    if timeout <= 0 or retry_window < 0:
        raise ValueError(
            f"timeout must be positive and retry_window not negative, got {timeout} and "
            f"{retry_window}"
        )
    if max_batch < 1 or connections < 1:
        raise ValueError(
            f"max_batch and connections must be positive, got {max_batch} and {connections}"
        )

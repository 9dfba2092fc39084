"""HTTP as a client: pooled connections, one deadline, a whole body or an error.

urllib3 comes with the extra ``remote``. It is used without its own retries and redirects, and it
reads no proxy variables: a request goes to the url that was configured or nowhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import urllib3

CONNECT_SECONDS = 5.0
MAX_REPLY_BYTES = 512 * 2**20
_CHUNK = 2**16
_RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def base_url(url: str, *routes: str) -> str:
    """Return a server's url without a slash, or the first of these routes that it has, at its end.

    >>> base_url("http://host:8000/v1/", "/v1")
    'http://host:8000'

    Raises:
        ValueError: it is no http url, or holds what ends the name of a host.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url must start with http:// or https://, got {url!r}")
    if set(url) & set("?#\\"):
        raise ValueError(f"url must name a server without ?, # and \\, got {url!r}")
    base = url.rstrip("/")
    route = next((route for route in routes if base.endswith(route)), "")
    return base.removesuffix(route).rstrip("/")


class TransientError(Exception):
    """A failure that may pass: connection, time, an overloaded or restarting server.

    Args:
        message: what happened.
        retry_after: seconds the server asked to wait; None if it named none.
        broken: whether it speaks against the server's health (being busy does not).
    """

    def __init__(self, message: str, retry_after: float | None = None, broken: bool = True) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.broken = broken


@dataclass(frozen=True)
class Reply:
    """A complete HTTP response."""

    status: int
    body: bytes
    retry_after: float | None

    def check(self) -> bytes:
        """Return the body of a 200.

        Raises:
            TransientError: a status that may pass.
            TooLargeError: status 413.
            RefusedByServerError: any other status.
        """
        if self.status == 200:
            return self.body
        said = self.body[:300].decode("utf-8", "replace").strip()
        message = f"status {self.status}" + (f", {said}" if said else "")
        if self.status in _RETRIED_STATUS:
            raise TransientError(message, self.retry_after, broken=self.status != 429)
        raise TooLargeError(message) if self.status == 413 else RefusedByServerError(message)


class RefusedByServerError(Exception):
    """An answer that asking again cannot change, such as status 404."""


class TooLargeError(RefusedByServerError):
    """A server refuses so large a request (413); parts of it may go."""


class Transport:
    """Requests over kept connections; thread-safe.

    Args:
        timeout: seconds a request may take, from connecting to the last byte.
        connections: connections kept to each server.
        api_key: sent as ``Authorization: Bearer KEY`` unless None.

    Raises:
        ImportError: urllib3 is not installed.
    """

    def __init__(self, timeout: float, connections: int, api_key: str | None) -> None:
        try:
            import urllib3
        except ImportError as error:
            raise ImportError(
                "asking a server needs urllib3; run: pip install -e '.[remote]'"
            ) from error
        self._timeout = timeout
        self._headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pool = urllib3.PoolManager(num_pools=256, maxsize=connections)

    def request(self, method: str, url: str, body: bytes | None = None) -> Reply:
        """Return the response; raise ``TransientError`` where none arrives whole and in time."""
        import urllib3
        from urllib3 import exceptions as errors

        deadline = time.monotonic() + self._timeout
        try:
            response = self._pool.request(
                method,
                url,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(
                    connect=min(CONNECT_SECONDS, self._timeout), read=self._timeout
                ),
                preload_content=False,
                retries=False,
                redirect=False,
            )
        except errors.NewConnectionError as error:
            raise TransientError(_cause(error)) from error
        except errors.ConnectTimeoutError as error:
            raise TransientError(f"no connection within {CONNECT_SECONDS:g} s") from error
        except errors.TimeoutError as error:
            raise TransientError(f"no answer within {self._timeout:g} s") from error
        except errors.HTTPError as error:
            raise TransientError(_cause(error)) from error
        try:
            data = read_whole(response, deadline, self._timeout)
        except errors.TimeoutError as error:
            raise TransientError(f"no whole answer within {self._timeout:g} s") from error
        except (errors.HTTPError, OSError) as error:
            raise TransientError(f"the answer broke off ({_cause(error)})") from error
        return Reply(response.status, data, _seconds(response.headers.get("Retry-After")))

    def close(self) -> None:
        """Close the kept connections."""
        self._pool.clear()


def read_whole(response: urllib3.BaseHTTPResponse, deadline: float, timeout: float) -> bytes:
    """Return the whole body; a connection that cannot be used again is closed."""
    data = bytearray()
    whole = False
    try:
        while part := response.read1(_CHUNK):
            data += part
            if time.monotonic() > deadline:
                raise TransientError(f"no whole answer within {timeout:g} s")
            if len(data) > MAX_REPLY_BYTES:
                raise RefusedByServerError(f"an answer of more than {MAX_REPLY_BYTES} bytes")
        whole = True
    finally:
        if whole:
            response.release_conn()
        else:
            response.close()
    return bytes(data)


def _cause(error: Exception) -> str:
    """Return the innermost reason of an error of urllib3."""
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, Exception) else error)


def _seconds(header: str | None) -> float | None:
    """Return the seconds a ``Retry-After`` header asks for; None for none, or for a date."""
    return float(header) if header is not None and header.isdecimal() else None

"""Keys of servers: read from the environment, and sent only to servers that the user named.

A config that came with somebody's run folder can name any server. While such a config is in use,
``withhold_keys`` is on: then ``key_for`` gives a key for ``http://mine:8000`` only after
``name_servers("... http://mine:8000 ...")``, which commands call with what the user wrote.
"""

from __future__ import annotations

import logging
import os
import re

KEY_VARIABLE = "RESEARCH_API_KEY"
"""The environment variable with the key that clients send to retrieval servers."""
SERVER_KEY_VARIABLE = "RESEARCH_SERVER_KEY"
"""The environment variable with the key that a server of ours wants from its clients."""
log = logging.getLogger(__name__)
# a host ends at ?, # and \ too: what stands behind one is no server that is asked
_URL = re.compile(r"https?://[^\s/\"',\]}?#\\]+", re.IGNORECASE)
_withheld = False
_named: set[str] = set()


def key_for(url: str, variable: str) -> str | None:
    """Return the key in an environment variable, None where it is empty or withheld from ``url``.

    Withholding a key is logged as a warning: the server may then refuse what it is asked.
    """
    key = os.environ.get(variable) or None
    if key is None or not _withheld or _origin(url) in _named:
        return key
    log.warning(
        "%s is not sent to %s: a config that came with a run's folder names that server, you did "
        "not; name it on the command line, or add --trust",
        variable,
        _origin(url),
    )
    return None


def server_key() -> str | None:
    """Return the key that a server of ours wants, None where it lets all in.

    The variable of clients was that of servers too. It is still heard, with a warning: a server
    that had a key must not stand open after an update.
    """
    if key := os.environ.get(SERVER_KEY_VARIABLE):
        return key
    former = os.environ.get(KEY_VARIABLE) or None
    if former is not None:
        log.warning(
            "%s, the key that clients send, is also the key that this server wants, because %s is "
            "not set; set that one, a server's key is not for every place that a client asks",
            KEY_VARIABLE,
            SERVER_KEY_VARIABLE,
        )
    return former


def name_servers(text: str) -> None:
    """Let keys go to every server whose url stands in a text that the user wrote."""
    _named.update(_origin(url) for url in _URL.findall(text))


def withhold_keys(withhold: bool) -> None:
    """Send keys to named servers alone, or to every server; False also forgets the names."""
    global _withheld
    _withheld = withhold
    if not withhold:
        _named.clear()


def _origin(url: str) -> str:
    """Scheme, host and port of a url, without a user's name in it."""
    found = _URL.match(url)
    scheme, _, host = (found[0] if found else url).lower().partition("://")
    return f"{scheme}://{host.rpartition('@')[2]}"

"""A key goes to a server that the user named, and to no other one that is dressed up as it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from research_rl.envs.web import base_url
from research_rl.envs.web.keys import KEY_VARIABLE, key_for, name_servers, withhold_keys

DRESSED_UP = [
    "http://evil.com?@mine:8000",
    "http://evil.com#@mine:8000",
    "http://evil.com\\@mine:8000",
    "http://evil.com/@mine:8000",
    "http://mine:8000@evil.com",
    "http://evil.com",
]


@pytest.fixture(autouse=True)
def _withheld(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    withhold_keys(True)
    yield
    withhold_keys(False)


@pytest.mark.parametrize("url", DRESSED_UP)
def test_another_host_gets_no_key(url: str, caplog: pytest.LogCaptureFixture) -> None:
    name_servers("research ask --url http://mine:8000/v1")
    assert key_for("http://mine:8000/search", KEY_VARIABLE) == "secret"
    assert key_for(url, KEY_VARIABLE) is None
    assert "evil.com" in caplog.text


@pytest.mark.parametrize("mark", ["?", "#", "\\"])
def test_a_servers_url_holds_nothing_that_ends_its_host(mark: str) -> None:
    with pytest.raises(ValueError, match="must name a server without"):
        base_url(f"http://evil.com{mark}@mine:8000")

"""What the tests of evaluations share: stand-ins for methods that were asked nothing yet."""

from __future__ import annotations

import pytest
from doubles.evaluated import Fails, Oracle


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "asked", [])
    monkeypatch.setattr(Oracle, "stop_after", None)
    monkeypatch.setattr(Fails, "failing", set())

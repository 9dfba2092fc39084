"""What tests of the served agent share: a model that writes nothing until it may."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")

from doubles.agent_server import Stalled


@pytest.fixture
def stalled() -> Iterator[Stalled]:
    model = Stalled()
    yield model
    model.go_on.set()

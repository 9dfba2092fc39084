"""What the tests of rollout servers share: a tiny model, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doubles import tiny

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy

if TYPE_CHECKING:
    from research_rl.agents.web.app import BackgroundRolloutServer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that often stops."""
    return tiny.checkpoint(tmp_path_factory.mktemp("policy"), bias={"<eos>": 3.0, "</search>": 4.0})


@pytest.fixture
def policy(saved: Path) -> LMPolicy:
    return LMPolicy.from_config(PolicyConfig(str(saved)))


@pytest.fixture
def server(saved: Path) -> Iterator[BackgroundRolloutServer]:
    pytest.importorskip("fastapi")
    pytest.importorskip("urllib3")
    from doubles.rollout_servers import served

    with served(saved) as running:
        yield running

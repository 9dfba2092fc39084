"""What the tests of training share: a tiny policy."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of it; torch is imported only where it is asked for."""
    from doubles.training import checkpoint

    return checkpoint(tmp_path_factory.mktemp("policy"))

"""What tests of trust share: what strangers send, and a folder in which none of it may run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.entry_points import prepare
from doubles.payloads import MODULE, make_all


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder or file of each kind that would run something."""
    return make_all(tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def here(
    tmp_path: Path, hostile: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The current folder; a stranger's module lies in it, and may not have run at the end."""
    prepare(tmp_path, hostile["ran"], monkeypatch)
    yield tmp_path
    assert not hostile["ran"].exists()
    sys.modules.pop(MODULE, None)

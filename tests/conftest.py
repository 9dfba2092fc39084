"""What several test files share: where the real question-answering samples lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real samples; RESEARCH_TEST_DATA or ../shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RESEARCH_TEST_DATA", default))
    if not (folder / "metric_cases.jsonl").is_file():
        pytest.skip(f"no real data at {folder}; set RESEARCH_TEST_DATA")
    return folder

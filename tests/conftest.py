"""What several test files share: where the real question-answering samples lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from doubles.places import ROOT, TESTS

os.environ.setdefault("OMP_NUM_THREADS", "1")
# what tests start as processes of their own imports doubles too
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), os.getenv("PYTHONPATH"))))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real samples; RESEARCH_TEST_DATA or ../shared/data beside the checkout."""
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("RESEARCH_TEST_DATA", default))
    if not (folder / "metric_cases.jsonl").is_file():
        pytest.skip(f"no real data at {folder}; set RESEARCH_TEST_DATA")
    return folder

"""What several test files share: where the real question-answering samples lie."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.places import ROOT, TESTS
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
# what tests start as processes of their own imports doubles too
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), os.getenv("PYTHONPATH"))))

# how long an example takes says how busy the machine is
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real samples; RESEARCH_TEST_DATA or ../shared/data beside the checkout."""
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("RESEARCH_TEST_DATA", default))
    if not (folder / "metric_cases.jsonl").is_file():
        pytest.skip(f"no real data at {folder}; set RESEARCH_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """Hear SIGHUP also where the tests were started by ``nohup``, which has it ignored."""
    number = getattr(signal, "SIGHUP", None)
    main = threading.current_thread() is threading.main_thread()
    if number is None or not main or signal.getsignal(number) != signal.SIG_IGN:
        yield
        return
    signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, signal.SIG_IGN)

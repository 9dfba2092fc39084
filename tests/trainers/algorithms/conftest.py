"""What the tests of learning rules share: a batch of two rollouts."""

from __future__ import annotations

import pytest
from doubles import tiny
from doubles.two_rows import batch

from research_rl.agents.policy.policy import LMPolicy
from research_rl.trainers.algorithms.batch import Batch


@pytest.fixture
def rows() -> Batch:
    return batch([[True, True], [True, False]], rewards=[1.0, 0.0], groups=[0, 0])


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    return tiny.policy()

"""Settings: the sections of a config, the shipped configs, and errors of one line.

``--config quickstart`` is found by shipped.py, and its section ``model.updates`` is the class
`Updates` in options.py.

Read first: options.py
May import: agents, envs
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import TRUST, TrustError, grant, lazy, trusted
from research_rl.trainers.settings.errors import TRACEBACK, UsageError, is_users_mistake, one_line
from research_rl.trainers.settings.shipped import (
    CONFIGS,
    EVALUATION,
    OneLineParser,
    ShippedConfigFile,
    find_config,
    shipped_configs,
)
from research_rl.trainers.settings.trust import (
    careful,
    distrust,
    distrusted,
    read_run_config,
    refuse_class,
    refuse_code,
)

if TYPE_CHECKING:
    from research_rl.trainers.settings.options import EnvConfig, Updates, ValidationSampling

__all__ = [
    "CONFIGS",
    "EVALUATION",
    "TRACEBACK",
    "TRUST",
    "EnvConfig",
    "OneLineParser",
    "ShippedConfigFile",
    "TrustError",
    "Updates",
    "UsageError",
    "ValidationSampling",
    "careful",
    "distrust",
    "distrusted",
    "find_config",
    "grant",
    "is_users_mistake",
    "one_line",
    "read_run_config",
    "refuse_class",
    "refuse_code",
    "shipped_configs",
    "trusted",
]

# a usage error does not wait for torch
__getattr__ = lazy(__name__, {"options": ["EnvConfig", "Updates", "ValidationSampling"]})

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
    PROTOCOL_CONFIGS,
    EvaluationConfigFile,
    OneLineParser,
    ShippedConfigFile,
    find_config,
    shipped_configs,
    usage_errors_raised,
)
from research_rl.trainers.settings.trust import (
    careful,
    distrust,
    distrusted,
    read_run_config,
    refuse_class,
    refuse_code,
)
from research_rl.trainers.settings.yaml_files import read_yaml

if TYPE_CHECKING:
    from research_rl.trainers.settings.contents import Stamp, weight_files, with_contents
    from research_rl.trainers.settings.options import (
        EnvConfig,
        PromptParts,
        Updates,
        ValidationSampling,
    )
    from research_rl.trainers.settings.policy_file import (
        POLICY_FILE,
        asked_as,
        protocol_of,
        read_policy_file,
        with_trained_prompt,
        write_policy_file,
    )

__all__ = [
    "CONFIGS",
    "EVALUATION",
    "POLICY_FILE",
    "PROTOCOL_CONFIGS",
    "TRACEBACK",
    "TRUST",
    "EnvConfig",
    "EvaluationConfigFile",
    "OneLineParser",
    "PromptParts",
    "ShippedConfigFile",
    "Stamp",
    "TrustError",
    "Updates",
    "UsageError",
    "ValidationSampling",
    "asked_as",
    "careful",
    "distrust",
    "distrusted",
    "find_config",
    "grant",
    "is_users_mistake",
    "one_line",
    "protocol_of",
    "read_policy_file",
    "read_run_config",
    "read_yaml",
    "refuse_class",
    "refuse_code",
    "shipped_configs",
    "trusted",
    "usage_errors_raised",
    "weight_files",
    "with_contents",
    "with_trained_prompt",
    "write_policy_file",
]

# a usage error does not wait for torch
__getattr__ = lazy(
    __name__,
    {
        "contents": ["Stamp", "weight_files", "with_contents"],
        "options": ["EnvConfig", "PromptParts", "Updates", "ValidationSampling"],
        "policy_file": [
            "POLICY_FILE",
            "asked_as",
            "protocol_of",
            "read_policy_file",
            "with_trained_prompt",
            "write_policy_file",
        ],
    },
)

"""A process that holds a folder until it is killed."""

from __future__ import annotations

HOLD = (
    "import sys, time, pathlib\n"
    "from research_rl.envs.system.locks import alone_in\n"
    "with alone_in(pathlib.Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(60)"
)

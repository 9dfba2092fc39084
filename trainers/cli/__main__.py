"""`python -m research_rl.trainers.cli` is the command `research`."""

from __future__ import annotations

from research_rl.trainers.cli import main

main()

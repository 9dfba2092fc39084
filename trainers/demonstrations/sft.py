"""The command ``research sft``: ``research fit`` over demonstrations, not sampled rollouts."""

from __future__ import annotations


def main(args: list[str]) -> None:
    """Run the console script's command: options, configs and folders are those of ``fit``."""
    from research_rl.trainers.cli import run
    from research_rl.trainers.demonstrations.data import DemonstrationDataModule
    from research_rl.trainers.demonstrations.module import SFTModule

    run(["fit", *args], module=SFTModule, data=DemonstrationDataModule)

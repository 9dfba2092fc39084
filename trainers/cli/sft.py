"""``research sft``: the fit command over demonstrations instead of sampled rollouts."""

from __future__ import annotations


def main(args: list[str]) -> None:
    """Run the console script's command: options, configs and folders are those of ``fit``."""
    from research_rl.trainers.cli.fit import run
    from research_rl.trainers.demonstrations import DemonstrationDataModule, SFTModule

    run(["fit", *args], module=SFTModule, data=DemonstrationDataModule)

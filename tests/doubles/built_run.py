"""`research fit` up to the point where training would begin."""

from __future__ import annotations

from research_rl.trainers.cli import fit


class Built(fit.ResearchCLI):
    """Everything is built, and nothing is run but what comes before training."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.before_fit()

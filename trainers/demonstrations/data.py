"""Demonstrations for training: rollouts from a file, served as questions are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research_rl.agents import Rollout, vector_rows
from research_rl.envs.system import LineError
from research_rl.trainers.data import QuestionDataModule, QuestionLoader, WorldConfig
from research_rl.trainers.demonstrations.encode import demonstrations_that_fit
from research_rl.trainers.usage import no_rollouts


def read_rollouts(file: str | Path) -> Iterator[Rollout]:
    """Yield the rollouts of a file: one row of JSON a line, as ``Rollout.to_row`` makes them.

    Raises:
        FileNotFoundError: there is no such file.
        LineError: a line is no rollout; names it.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(no_rollouts(path))
    with path.open("rb") as lines:  # a line ends at \\n, not at what else Unicode calls an end
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a rollout must be a JSON object, got {type(row).__name__}")
                yield Rollout.from_row(row)
            except (ValueError, TypeError, UnicodeDecodeError) as error:
                raise LineError(path, number, str(error)) from error


class DemonstrationDataModule(QuestionDataModule):
    """Demonstrations to imitate, and questions to validate with as in reinforcement learning.

    Args:
        train: a rollout file; ``research collect`` makes them.
        val: held-out questions, asked every so often as ``research fit`` asks them.
        test: questions of ``research test`` and ``research predict``.
        batch_size: demonstrations of an optimizer step, over all ranks together.
        val_batch_size: questions played at once in validation, test and prediction.
        seed: order of the demonstrations.
        world: the synthetic world, for validation and test questions that are not given.
        limit_train: use only so many demonstrations, the first ones.
        limit_val: use only so many validation questions, the first ones.
        limit_test: use only so many test questions, the first ones.
        max_prompt_tokens: leave out validation and test questions with a longer prompt; see
            QuestionDataModule.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        batch_size: int = 16,
        val_batch_size: int = 64,
        seed: int = 0,
        world: WorldConfig | None = None,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        super().__init__(
            train,
            val,
            test,
            batch_size,
            val_batch_size,
            seed,
            world,
            limit_train,
            limit_val,
            limit_test,
            max_prompt_tokens,
        )

    def demonstrations(self) -> list[Rollout]:
        """Read the demonstrations.

        Raises:
            ValueError: no file is named, it is empty, or the limit is not positive.
            FileNotFoundError: there is no such file.
            LineError: a line of it is no rollout.
        """
        source, limit = self.sources["train"], self.limits["train"]
        if source is None:
            raise ValueError(
                "data.train must name a rollout file, got none; make one with research collect, "
                "and set --data.train FILE"
            )
        if limit is not None and limit < 1:
            raise ValueError(f"limit_train must be at least 1, got {limit}")
        found = list(read_rollouts(source))[:limit]
        if not found:
            raise ValueError(f"{source} must hold at least one rollout, got an empty file")
        return found

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that a wrong file ends it at once."""
        if stage != "fit":
            super().setup(stage)
            return
        self.train_dataloader()
        if self._has("val"):
            self.questions("val")

    def train_dataloader(self) -> QuestionLoader[Rollout]:
        """Return shuffled batches of demonstrations; the last, smaller one of a pass is dropped.

        Those that the model has no room for are left out, once it is there.
        """
        shown = self.demonstrations()
        module: Any = getattr(self.trainer, "lightning_module", None)
        if hasattr(module, "policy"):
            rows = vector_rows(module.env)
            shown = demonstrations_that_fit(shown, module.policy, rows.prompt, rows.protocol)
        return QuestionLoader(shown, self.batch_size, self.seed, *self.place())

"""Health of a run, measured on its rollouts: signs that show before the score falls.

A policy may repeat its queries for many iterations while its F1 still holds. The measures are
plain functions of rollouts; HealthMonitor logs them as ``health/...`` after each iteration and
draws them. docs/guards.md explains each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from time import perf_counter
from typing import Any

import pytorch_lightning as pl

from research_rl.agents import Rollout
from research_rl.envs.protocols import Search
from research_rl.trainers.callbacks import (
    RunCallback,
    cosmetic,
    health_picture,
    rollouts_of,
    run_folder,
)
from research_rl.trainers.distributed import gather
from research_rl.trainers.health.signs import repetition, thoughts
from research_rl.trainers.measures import SOLVED, Measures, average
from research_rl.trainers.progress import note_logged


def measure_health(rollout: Rollout) -> Measures:
    """Return the signs of one rollout; shares and flags are between 0 and 1.

    ``closed_book`` (1 if it answered without a search; only if it answered) and
    ``closed_book_right`` (1 if that answer is right; only for those); ``duplicate_queries`` and
    ``empty_queries`` (shares of its searches); ``forged_results``; ``broken_tags``; ``repetition``
    (of its most repetitive thought), ``empty_thoughts`` (share of its thoughts) and
    ``thought_words`` (words of a thought); ``turn_tokens`` (sampled tokens of a turn);
    ``logprob``, and the same as ``right_logprob`` or ``wrong_logprob`` (mean log-prob of its
    sampled tokens in nats, as the engine reported them; minus an estimate of the entropy).
    """
    right = rollout.reward.f1 >= SOLVED
    signs: Measures = {
        "forged_results": float(any(map(rollout.protocol.forges_reply, rollout.turns))),
        "broken_tags": float(_broken(rollout)),
        **_of_searches(rollout),
        **_of_thoughts(rollout),
    }
    if rollout.finish_reason == "answer":
        signs["closed_book"] = float(not rollout.num_searches)
        if not rollout.num_searches:
            signs["closed_book_right"] = float(right)
    sampled = [
        value
        for value, own in zip(rollout.sequence.logprobs, rollout.sequence.loss_mask, strict=True)
        if own
    ]
    if sampled:
        mean = sum(sampled) / len(sampled)
        signs |= {"logprob": mean, f"{'right' if right else 'wrong'}_logprob": mean}
        signs["turn_tokens"] = len(sampled) / max(1, len(rollout.turns))
    return signs


def _of_searches(rollout: Rollout) -> Measures:
    actions = [rollout.protocol.parse(turn) for turn in rollout.whole_turns]
    asked = [q for a in actions if isinstance(a, Search) for q in a.queries]
    queries = [" ".join(query.casefold().split()) for query in asked]
    if not queries:
        return {}
    repeated = sum(count - 1 for query, count in Counter(queries).items() if query)
    return {
        "duplicate_queries": repeated / len(queries),
        "empty_queries": queries.count("") / len(queries),
    }


def _of_thoughts(rollout: Rollout) -> Measures:
    turns = rollout.whole_turns
    found = [thought for turn in turns for thought in thoughts(turn, rollout.protocol)]
    if not found:
        return {}
    return {
        "repetition": max(map(repetition, found)),
        "empty_thoughts": sum(not thought.strip() for thought in found) / len(found),
        "thought_words": sum(len(thought.split()) for thought in found) / len(found),
    }


def _broken(rollout: Rollout) -> bool:
    cut = rollout.finish_reason == "length"
    last = len(rollout.turns) - 1
    broken = rollout.protocol.broken
    return any(broken(turn, cut and i == last) for i, turn in enumerate(rollout.whole_turns))


def measure_groups(rollouts: Iterable[Rollout]) -> list[Measures]:
    """Return the signs of each group: ``all_right``, and ``all_wrong`` if every F1 is 0.

    Both kinds teach little: the question is learned already, or too hard.
    """
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.question.id, rollout.question.text].append(rollout.reward.f1)
    return [
        {"all_right": float(min(f1s) >= SOLVED), "all_wrong": float(max(f1s) <= 0)}
        for f1s in groups.values()
    ]


class HealthMonitor(RunCallback):
    """Logs the health of a run after each iteration, and draws it beside ``metrics.csv``.

    The numbers are means over the rollouts of all ranks. They go to the module's loggers, at the
    same steps as its own metrics. It must be listed before a CollapseGuard, which reads them.

    Args:
        every_n_steps: iterations between two drawings; 0 draws only at the end.
        filename: of the picture, beside ``metrics.csv``.

    Raises:
        ValueError: ``every_n_steps`` is negative.
    """

    label = "health"

    def __init__(self, every_n_steps: int = 10, filename: str = "health.png") -> None:
        super().__init__()
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must be 0 or more, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.filename = filename
        self.latest: Measures = {}
        """Means of the latest iteration, without the prefix; the same on every rank."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Measure, log, and draw every n iterations."""
        start = perf_counter()
        rollouts = rollouts_of(pl_module, "train_rollouts")
        rows = gather([*map(measure_health, rollouts), *measure_groups(rollouts)])
        self.latest = average(rows, by_hop=())
        named = {f"health/{name}": value for name, value in self.latest.items()}
        log_metrics(trainer, pl_module, {**named, "time/health_s": perf_counter() - start})
        done = _iterations(pl_module)
        if self.every_n_steps and done % self.every_n_steps == 0:
            self._draw(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        with cosmetic("draw the health of the run"):
            metrics = run_folder(trainer) / "metrics.csv"
            if metrics.is_file():
                self.written = health_picture(metrics, metrics.with_name(self.filename))


def log_metrics(
    trainer: pl.Trainer, pl_module: pl.LightningModule, metrics: Mapping[str, float]
) -> None:
    """Log what a callback has measured in the iteration that just ended, at that iteration's step.

    Callbacks find it in ``trainer.callback_metrics``. The loggers get it at the number of
    iterations that the rollouts' policy had learned from, as they get the module's own metrics.
    """
    for name, value in metrics.items():
        pl_module.log(name, value, logger=False)
    settings: Any = trainer
    done = _iterations(pl_module)
    note_logged(pl_module, metrics, done - 1)
    if done % max(settings.log_every_n_steps, 1) == 0:
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), done - 1)
            logger.save()


def _iterations(pl_module: pl.LightningModule) -> int:
    """Return how many iterations the policy has learned from, including the one that just ended."""
    return int(pl_module.iteration)  # type: ignore[arg-type]


__all__ = ["HealthMonitor", "log_metrics", "measure_groups", "measure_health"]

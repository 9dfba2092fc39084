"""What a run has come to: its state, a verdict on it, its costs, and what to do next."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from research_rl.envs.system import is_held
from research_rl.trainers.overview.bands import LATE, Band
from research_rl.trainers.overview.folder import RunFolder, number, texts
from research_rl.trainers.overview.hops import HopCurve, lost_hops

StateName = Literal["running", "probably running", "finished", "stopped", "unknown", "not begun"]
Grade = Literal["well", "watch", "ill", "unknown"]
_ON_REWARDS = ("no_difference", "same_format_error", "empty_searches", "out_of_tokens")
"""Verdicts that say nothing of a run which imitates demonstrations."""
_RECENT = 10
"""Iterations whose verdicts say how the run is now."""
_ALIVE = 300.0
"""Seconds since a file of a run changed in which it is taken for running, where no lock tells."""
_UNSEEN = "stopped or running elsewhere (unknown here)"


class RunState(NamedTuple):
    """Where a run is: ``done`` of ``total`` iterations, None where the config has no limit."""

    name: StateName
    done: int
    total: int | None

    def __str__(self) -> str:
        if self.name == "not begun":
            return "not begun"
        of = f" of {self.total:,}" if self.total is not None and self.total >= self.done else ""
        said = _UNSEEN if self.name == "unknown" else self.name
        return f"{said}, {self.done:,}{of} iterations" if of else f"{said}, {_counted(self.done)}"


@dataclass(frozen=True)
class Reason:
    """What was seen, what helps, and in which iterations the signal check saw it; else none."""

    name: str
    said: str
    remedy: str
    iterations: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class RunVerdict:
    """How a run does: a grade, a sentence, what was lost, and the signal check and the guard."""

    grade: Grade
    said: str
    reasons: list[Reason]
    guard: list[str]


class RunCost(NamedTuple):
    """A line of the costs, with a note."""

    name: str
    value: str
    note: str = ""


class Command(NamedTuple):
    """A command to run next, and what it does."""

    why: str
    line: str


def state_of(run: RunFolder, over: bool | None = None) -> RunState:
    """Return where a run is.

    Args:
        run: whose lock, config and metrics are looked at.
        over: whether it has ended, where the caller knows; None asks its lock, and the time of its
            last change where no lock can be seen.
    """
    done, total = run.iterations, _total(run)
    if total is not None and done >= total:
        return RunState("finished", done, total)
    held = is_held(run.path) if over is None else not over
    if held is None:
        alive = time.time() - run.changed < _ALIVE
        return RunState("probably running" if alive else "unknown", done, total)
    if held:
        return RunState("running", done, total)
    return RunState("stopped" if done else "not begun", done, total)


def _total(run: RunFolder) -> int | None:
    """Iterations that the config asks for; ``max_steps`` counts updates of the weights.

    How many a limit of ``max_epochs`` comes to depends on the questions; the run has noted it.
    """
    limits = [number(run.costs.get("iterations"))]
    steps = number(run.option("trainer.max_steps"))
    if steps is not None and steps >= 1:
        each = 1.0
        for name in () if imitates(run) else ("num_epochs", "num_minibatches"):
            each *= max(1.0, number(run.option(f"model.updates.{name}", 1)) or 1.0)
        limits.append(math.ceil(steps / each))
    known = [limit for limit in limits if limit is not None]
    return int(min(known)) if known else None


def imitates(run: RunFolder) -> bool:
    """Return whether a run is one of ``research sft``, each iteration of which is one update."""
    if (command := run.costs.get("command")) is not None:
        return bool(command == "sft")
    return bool(run.metric("train/nll")) and not run.metric("train/reward")


def verdict_of_run(run: RunFolder, bands: Iterable[Band]) -> RunVerdict:
    """Return how a run does: by its validations, the verdicts it wrote, the bands of its health."""
    lost = [_lost(run, *one) for one in lost_hops(run)]
    reasons = [*lost, *_reasons(run)]
    ill = [band for band in bands if band.state == "ill"]
    was = [band for band in bands if band.state == "was ill"]
    guard = [
        f"step {row.get('step')}: {texts(row.get('kind'), 40)}: "
        + "; ".join(texts(r, 300) for r in _list(row.get("reasons")))
        for row in run.guard[-5:]
    ]
    rewards = [value for _, value in run.metric("train/reward")]
    recent = [r for r in reasons if r.iterations and r.iterations[-1] > run.iterations - _RECENT]
    lasting = [r for r in recent if r.iterations[-1] >= run.iterations]
    if not run.iterations:
        return RunVerdict("unknown", "No iteration was trained yet.", reasons, guard)
    if rewards and not any(rewards):
        said = "No rollout was ever paid: there is nothing that the policy could learn from."
        return RunVerdict("ill", said, reasons, guard)
    few = ""
    if run.iterations <= LATE:
        few = f" {_counted(run.iterations)}: too few to compare now with the start of the run."
    if lasting:
        said = "The last iteration gave little or nothing to learn from."
        return RunVerdict("ill", said + few, reasons, guard)
    if ill:
        said = f"Ill now: {', '.join(band.name for band in ill)}."
        return RunVerdict("watch" if few else "ill", said + few, reasons, guard)
    if lost:
        names = ", ".join(one.name for one in lost)
        said = f"No sign of collapse now, but it unlearned the questions with {names}."
        return RunVerdict("watch", said + few, reasons, guard)
    if recent or was:
        earlier = [band.name for band in was] + [r.name.replace("_", " ") for r in recent]
        said = f"Well now; earlier there were signs of trouble: {', '.join(earlier)}."
        return RunVerdict("watch", said + few, reasons, guard)
    said = "No sign of trouble: no verdict of the signal check, and no limit of health is crossed."
    return RunVerdict("well", said + few, reasons, guard)


def _lost(run: RunFolder, curve: HopCurve, best: tuple[int, float]) -> Reason:
    """What became of the questions with so many hops, and what may bring them back."""
    step, now = curve.points[-1]
    said = f"Validation F1 of these questions fell from {best[1]:.2f} at step {best[0]:,}"
    said += f" to {now:.2f} at step {step:,}"
    mean = dict(run.metric("val/f1"))
    hidden = mean.get(step, 0.0) >= mean.get(best[0], math.inf)
    said += "; the mean over all questions does not show it." if hidden else "."
    if curve.searches is not None and curve.searches < curve.hops - 0.5:
        said += f" They need {curve.hops} searches, and it makes {curve.searches:.2f}."
    remedy = (
        "Look at a rollout of such a question first. With more steps they may come back, as long "
        "as some are answered when it samples; else train on more such questions, or show more of "
        "them in the demonstrations."
    )
    return Reason(curve.name, said, remedy)


def _counted(iterations: int) -> str:
    return f"{iterations:,} iteration{'' if iterations == 1 else 's'}"


def _reasons(run: RunFolder) -> list[Reason]:
    """The verdicts by name, the latest first; of imitation those on rewards are left out."""
    found: dict[str, Reason] = {}
    unrewarded = imitates(run)
    for row in run.signal:
        for one in row["verdicts"]:
            name = texts(one.get("name"), 80)
            if unrewarded and name in _ON_REWARDS:
                continue
            before = found.get(name)
            its = [*(before.iterations if before else []), row["iteration"]]
            said, remedy = texts(one.get("said", "")), texts(one.get("remedy", ""))
            found[name] = Reason(name, said, remedy, its)
    return sorted(found.values(), key=lambda reason: (-reason.iterations[-1], reason.name))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def costs_of(run: RunFolder) -> list[RunCost]:
    """Return what a run has cost: tokens, time, memory, disk."""
    return [*_tokens(run), *_seconds(run), *_memory(run), *_disk(run)]


def _tokens(run: RunFolder) -> list[RunCost]:
    batch, group = run.option("data.batch_size"), run.option("model.updates.group_size")
    each = (number(batch) or 0) * (number(group) or 0)
    sampled = dict(run.metric("train/sampled_rollouts"))
    written, all_, steps = 0.0, 0.0, run.metric("train/sampled_tokens")
    response = dict(run.metric("train/response_tokens"))
    for step, tokens in steps:
        rollouts = sampled.get(step, each)
        written += tokens * rollouts
        all_ += response.get(step, tokens) * rollouts
    if not steps or not written:
        return []
    rollouts = sum(sampled.get(step, each) for step, _ in steps)
    found = [
        RunCost("rollouts", f"{rollouts:,.0f}", f"{len(steps):,} iterations"),
        RunCost("tokens written", f"{written:,.0f}", f"{written / rollouts:,.1f} a rollout"),
        RunCost("tokens read from results", f"{all_ - written:,.0f}"),
    ]
    if seconds := sum(value for _, value in run.metric("time/rollout_s")):
        found.append(RunCost("written a second", f"{written / seconds:,.0f}", "while sampling"))
    return found


_SPENT = {"rollout_s": "sampling", "update_s": "learning", "health_s": "measuring health"}


def time_of_iterations(run: RunFolder) -> float:
    """Return the seconds that all iterations took: sampling, learning, measuring health."""
    return sum(_spent(run).values())


def _spent(run: RunFolder) -> dict[str, float]:
    return {what: sum(v for _, v in run.metric(f"time/{n}")) for n, what in _SPENT.items()}


def _seconds(run: RunFolder) -> list[RunCost]:
    spent, total = _spent(run), time_of_iterations(run)
    if not total:
        return []
    parts = ", ".join(f"{what} {100 * s / total:.0f} %" for what, s in spent.items() if s)
    each = total / max(1, len(run.metric("time/rollout_s")))
    return [
        RunCost("time of iterations", spent_time(total), parts),
        RunCost(
            "an iteration", spent_time(each), "validations, warm start and pages are not in it"
        ),
    ]


def _memory(run: RunFolder) -> list[RunCost]:
    found = []
    names = {"host_bytes": "main memory, peak", "device_bytes": "device memory, peak"}
    for name, what in names.items():
        if value := number(run.costs.get(name)):
            found.append(RunCost(what, f"{value / 2**30:.2f} GiB", "of the first process"))
    if machine := run.costs.get("machine"):
        found.append(RunCost("machine", texts(machine, 200)))
    return found


def _disk(run: RunFolder) -> list[RunCost]:
    files = [f for f in (run.path / "checkpoints").rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files)
    return [RunCost("checkpoints", f"{size / 2**20:,.1f} MiB")] if size else []


def spent_time(seconds: float) -> str:
    """Return a time as ``2 h 05 min``, ``3 min 20 s`` or ``1.5 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min {rest:02d} s"
    )


def when(seconds: float) -> str:
    """Return a time stamp as ``2026-11-30 20:24``, in this machine's zone; "" for 0."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else ""


def best_validation(run: RunFolder) -> tuple[int, float] | None:
    """Return the step of the best validation F1 and its value; the earliest of equal ones."""
    points = run.metric("val/f1")
    return max(points, key=lambda point: (point[1], -point[0]), default=None)


def next_commands(run: RunFolder, state: RunState, grade: Grade) -> list[Command]:
    """Return what is sensible to do with a run now, the likeliest first."""
    folder = shlex.quote(str(run.path))
    config = shlex.quote(str(run.path / "config.yaml"))
    command = "sft" if imitates(run) else "fit"
    again = f"research {command} --config {config} --ckpt_path last"
    go_on = Command("go on where it stopped", again)
    renew = Command("write this page anew", f"research page {folder}")
    if state.name in ("running", "probably running"):
        return [Command("see all runs beside it", _runs(run.path)), renew]
    if grade == "ill":
        teach = "show the policy the form first, then train again"
        out = shlex.quote(str(run.path.with_name(f"{run.name}-demonstrations")))
        collect = f"research collect --config {config} --from gold --out {out}"
        beside = shlex.quote(str(run.path.with_name(f"{run.name}-sft")))
        imitate = f"research sft --config {config} --data.train {out}/rollouts.jsonl"
        imitate += f" --trainer.default_root_dir {beside}"
        more = [go_on] if state.name == "stopped" else []
        return [Command(teach, collect), Command("imitate what was collected", imitate), *more]
    if state.name == "unknown":
        return [Command("see all runs beside it", _runs(run.path)), renew]
    if state.name != "finished":
        return [go_on, renew]
    found = [Command("ask it a question", f'research ask "Who ...?" --run {folder}')]
    if not run.answers:
        line = f"research evaluate --config evaluate/quickstart --run {folder}"
        if not (run.path / "checkpoints" / "best.ckpt").exists():
            line += " --models.quickstart.checkpoint last"
        found.insert(0, Command("compare it with other methods", line))
    found.append(Command("beside another run", f"research compare {folder} OTHER_RUN"))
    return [*found, renew]


def _runs(path: Path) -> str:
    return f"research runs {shlex.quote(str(path.parent))}"

"""One-step-off sampling: which weights sample what, exact resume, and training on servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles import training
from doubles.sample_rollouts import rollout
from doubles.threads import Threads

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import Rollout, SamplingParams
from research_rl.envs.types import Question
from research_rl.trainers.ahead import Ahead, Collected, stale_rows
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.algorithms.policy_gradient import Correction
from research_rl.trainers.settings.options import Updates

UPDATES = Updates(group_size=4, micro_batch_size=3, async_rollouts=1)


class Diary(pl.Callback):
    """Remembers the rollouts of each iteration, and the weights before it; may stop the run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rollouts: list[list[Rollout]] = []
        self.weights: list[torch.Tensor] = []
        self.stop_after = stop_after

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append(training.weights(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.rollouts.append(list(pl_module.train_rollouts))
        if len(self.rollouts) == self.stop_after:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")
            trainer.should_stop = True


def run(
    folder: Path, policy: Path, steps: int, ckpt: str | None = None, **arguments: Any
) -> tuple[Any, Diary]:
    stop = arguments.pop("stop_after", None)
    settings = {"updates": UPDATES, "algorithm": GRPO(correction=Correction()), **arguments}
    module, diary = training.module(policy, **settings), Diary(stop)
    trainer = training.trainer(folder, steps, limit_val_batches=0, callbacks=[diary])
    trainer.fit(module, training.Data(), ckpt_path=ckpt)
    return module, diary


def ids(rollouts: list[Rollout]) -> list[list[int]]:
    return [r.sequence.response_ids for r in rollouts]


def test_every_iteration_is_sampled_with_the_weights_of_the_one_before(
    policy: Path, tmp_path: Path
) -> None:
    module, diary = run(tmp_path, policy, 4)
    versions = [{v for r in rollouts for v in r.sequence.versions} for rollouts in diary.rollouts]
    assert versions == [{0}, {0}, {1}, {2}]
    assert all(
        len(r.sequence.versions) == len(r.turns) for rollouts in diary.rollouts for r in rollouts
    )
    assert not torch.equal(diary.weights[2], diary.weights[1])
    offset = 0
    with torch.no_grad():  # the weights that iteration 2 began with, put back
        for weight in module.policy.parameters():
            weight.copy_(diary.weights[2][offset : offset + weight.numel()].view_as(weight))
            offset += weight.numel()
    due = [r.question for r in diary.rollouts[3][:: UPDATES.group_size]]
    again = module._collect(module.policy, module.engine, due, 3).rollouts
    assert ids(again) == ids(diary.rollouts[3])


def test_a_resumed_run_goes_on_exactly(policy: Path, tmp_path: Path) -> None:
    whole, expected = run(tmp_path / "whole", policy, 4)
    _, before = run(tmp_path / "stopped", policy, 4, stop_after=2)
    checkpoint = str(tmp_path / "stopped" / "stopped.ckpt")
    resumed, after = run(tmp_path / "resumed", policy, 4, ckpt=checkpoint)
    found = before.rollouts + after.rollouts
    assert [ids(rollouts) for rollouts in found] == [ids(r) for r in expected.rollouts]
    assert found == expected.rollouts
    assert torch.equal(training.weights(resumed), training.weights(whole))


def test_a_run_that_was_not_ahead_begins_on_policy(policy: Path, tmp_path: Path) -> None:
    in_turn = replace(UPDATES, async_rollouts=0)
    run(tmp_path / "first", policy, 3, updates=in_turn, stop_after=2)
    checkpoint = str(tmp_path / "first" / "stopped.ckpt")
    _, diary = run(tmp_path / "second", policy, 4, ckpt=checkpoint)
    versions = [{v for r in rollouts for v in r.sequence.versions} for rollouts in diary.rollouts]
    assert versions == [{2}, {2}]


def test_every_engine_is_closed_behind_a_run(policy: Path, tmp_path: Path) -> None:
    made: list[CachedEngine] = []
    closed: list[CachedEngine] = []

    class Watched(CachedEngine):
        def __init__(self, own: LMPolicy) -> None:
            super().__init__(own)
            made.append(self)

        def close(self) -> None:
            closed.append(self)

    run(tmp_path, policy, 2, engine=Watched)
    assert len(made) == 2, "the run's own, and that of the copy"
    assert closed == made


def test_stale_rollouts_need_a_correction(policy: Path) -> None:
    with pytest.raises(ValueError, match=r"algorithm\.correction must be set"):
        training.module(policy, updates=UPDATES, algorithm=GRPO(correction=None))


@pytest.mark.parametrize("arguments", [{"async_rollouts": 2}, {"max_staleness": 0}])
def test_impossible_options_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="async_rollouts"):
        replace(UPDATES, **arguments)


def test_what_the_thread_raises_is_raised() -> None:
    def broken() -> Collected:
        raise ConnectionError("the retriever is gone")

    with (
        pytest.raises(ConnectionError, match="the retriever is gone"),
        Ahead(training.module).running(broken),
    ):
        pass


def test_stale_rollouts_are_left_out() -> None:
    rollouts = [rollout(), rollout(), rollout()]
    for one, versions in zip(rollouts, ([3, 3], [1, 3], [2]), strict=True):
        one.sequence.versions = versions
    assert stale_rows(rollouts, 3, None) == []
    assert stale_rows(rollouts, 3, 1) == [1]
    assert stale_rows(rollouts, 3, 0) == [1, 2]


def nested(kept: Collected) -> dict[str, Any]:
    """What version 0.1.0 wrote."""
    rows = asdict(kept)
    for row in rows["rollouts"]:
        for later in ("protocol", "opened", "named"):
            del row[later]
    return rows


@pytest.mark.parametrize("kept", [Collected.to_row, nested], ids=["now", "0.1.0"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_what_was_made_ahead_is_dealt_to_other_ranks(
    world_size: int, kept: Callable[[Collected], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def group(number: int) -> list[Rollout]:
        question = Question(f"q{number}", "Who?", ("é\ud83d",), {"hops": number})
        return [replace(rollout(), question=question) for _ in range(2)]

    ranks = [
        Collected(group(0) + group(2), 4, ["q0", "q2"]),
        Collected(group(1) + group(3), 4, ["q1", "q3"]),
    ]
    ahead = Ahead(training.module)
    ahead._ready = ranks[0]
    monkeypatch.setattr("research_rl.trainers.ahead.gather", lambda own: [kept(r) for r in ranks])
    state = ahead.state()
    for rank in range(world_size):
        ahead.load(state, rank, world_size)
        mine = [training.questions(1)[0].__class__(f"q{i}", "Who?", ()) for i in range(4)]
        taken = ahead.take(mine[rank::world_size])
        assert taken is not None
        expected = [r for i in range(rank, 4, world_size) for r in group(i)]
        assert taken.rollouts == expected


def test_a_checkpoint_before_the_first_iteration_keeps_what_was_made_ahead() -> None:
    ahead, resumed = Ahead(training.module), Ahead(training.module)
    ahead._ready = Collected([rollout()], 1, ["q0"])
    state = ahead.state()
    resumed.load(state, 0, 1)
    again = resumed.state()
    assert state is not None
    assert again is not None
    assert torch.equal(again["rollouts"], state["rollouts"])
    assert resumed.take([Question("q0", "Who?", ())]) == ahead.take([Question("q0", "Who?", ())])


def test_other_questions_are_sampled_anew(caplog: pytest.LogCaptureFixture) -> None:
    ahead = Ahead(training.module)
    ahead._ready = Collected([rollout()], 1, ["q0"])
    assert ahead.take([Question("q1", "Who?", ())]) is None
    assert "for other questions" in caplog.text
    assert ahead.take([Question("q0", "Who?", ())]) is None


@pytest.mark.parametrize("updates", [replace(UPDATES, async_rollouts=0), UPDATES])
def test_training_on_a_server_is_training_in_process(
    policy: Path, tmp_path: Path, updates: Updates
) -> None:
    pytest.importorskip("fastapi")
    from research_rl.agents.web.app import BackgroundRolloutServer
    from research_rl.agents.web.engine import ServerEngine
    from research_rl.agents.web.request_queue import RequestQueue

    threads = Threads()
    here, expected = run(tmp_path / "here", policy, 3, updates=updates)
    queue = RequestQueue(LMPolicy.from_config(PolicyConfig(str(policy))), "tiny")
    with BackgroundRolloutServer(queue, weights_below=tmp_path) as server:

        def engine(own: LMPolicy) -> ServerEngine:
            urls = [server.url, "http://127.0.0.1:9"]
            return ServerEngine(own, urls, "tiny", folder=str(tmp_path / "weights"))

        there, found = run(tmp_path / "there", policy, 3, updates=updates, engine=engine)
    assert threads.running("rollout", "probe") == 0
    assert [ids(r) for r in found.rollouts] == [ids(r) for r in expected.rollouts]
    versions = [{v for r in rollouts for v in r.sequence.versions} for rollouts in found.rollouts]
    assert versions == ([{0}, {0}, {1}] if updates.async_rollouts else [{0}, {1}, {2}])
    assert torch.allclose(training.weights(there), training.weights(here), atol=1e-5)


def test_rollouts_of_other_options_are_not_learned_from(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, policy, 4, stop_after=2)
    stopped = str(tmp_path / "stopped.ckpt")
    caplog.clear()
    _, same = run(tmp_path, policy, 3, stopped)
    assert "were sampled with other options" not in caplog.text
    assert {v for r in same.rollouts[0] for v in r.sequence.versions} == {1}
    fewer = SamplingParams(max_response_tokens=5)
    _, other = run(tmp_path, policy, 3, stopped, sampling=fewer)
    assert "were sampled with other options" in caplog.text
    assert max(len(r.sequence.response_ids) for r in other.rollouts[0]) <= 5

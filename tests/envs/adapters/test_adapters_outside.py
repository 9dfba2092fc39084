"""The adapters against the libraries they are for; each is skipped where its library is not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.places import ROOT

from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.presets import RewardFunction
from research_rl.envs.types import Question, Reward

sys.path.insert(0, str(ROOT / "examples"))

SEARCH = "<think> t </think><search> {} </search>"
ANSWER = "<think> t </think><answer> \\boxed{{{}}} </answer>"


@pytest.fixture
def trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TRL, quiet, its output in a temporary folder."""
    library = pytest.importorskip("trl", minversion="1.16")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.chdir(tmp_path)
    return library


def test_trl_trains_on_rollouts(trl: Any) -> None:
    import trl_rollouts

    log = trl_rollouts.main(["--steps", "2", "--tokens", "24"])
    assert [entry["step"] for entry in log] == [1, 2]
    assert all(entry["completions/max_length"] <= 24 for entry in log)
    assert all("research/searches" in entry for entry in log)


def test_trl_learns_from_what_was_sampled(trl: Any) -> None:
    """Its log-probs of the ids equal those of the sampler, results are masked, eos is there."""
    from datasets import Dataset
    from test_adapters import BIAS, QUESTIONS, rollouts

    from research_rl.agents.adapters.trl import research_reward

    def searches(research_searches: list[int], **_: Any) -> list[float]:
        return [float(n) for n in research_searches]

    policy, play = tiny.policy(bias=BIAS), rollouts()
    policy.tokenizer.padding_side = "left"
    trainer = trl.GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=[research_reward, searches],
        rollout_func=play,
        train_dataset=Dataset.from_list(play.rows()),
        args=trl.GRPOConfig(
            output_dir="out",
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=200,
            temperature=0.7,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
    )
    asked = [{"prompt": QUESTIONS[i // 4].text} for i in range(8)]
    batch = trainer._generate_and_score_completions(asked)
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    assert 0 < int(mask.sum()) < int(batch["completion_mask"].sum())
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        theirs = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, batch["completion_ids"].shape[1]
        )[0]
    torch.testing.assert_close(
        theirs[mask], batch["sampling_per_token_logps"][mask], atol=2e-4, rtol=2e-4
    )
    before = [w.clone() for w in trainer.model.parameters()]
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert max(entry["grad_norm"] for entry in log) > 0
    assert min(entry["completions/clipped_ratio"] for entry in log) < 1
    moved = zip(before, trainer.model.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)


def test_trl_trains_with_the_tool(trl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script plays the model: one tool call, then the answer, as Qwen3 writes them."""
    import trl_tools

    call = '<tool_call>\n{"name": "search", "arguments": {"query": "the boss of Bakset"}}\n'
    script = [call + "</tool_call><|im_end|>", "It is \\boxed{nobody}.<|im_end|>"]

    def write(self: Any, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        encode = self.processing_class.encode
        tool_result = self.processing_class.decode(prompt_ids[0]).count("<tool_response>")
        ids = encode(script[tool_result], add_special_tokens=False)
        return [list(ids) for _ in prompt_ids], None

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", write)
    log = trl_tools.main(["--steps", "1", "--tokens", "1000"])
    assert log[0]["tools/call_frequency"] == 1.0
    assert log[0]["tools/failure_frequency"] == 0.0
    assert log[0]["reward"] == pytest.approx(0.1)


def test_torchrl_plays_text_and_trains() -> None:
    pytest.importorskip("torchrl")
    import torchrl_ppo

    played = torchrl_ppo.text_rollout(seed=0)
    assert played["next", "observation"][0].startswith(" <result>\n")
    assert float(played["next", "reward"][-1]) == pytest.approx(0.1)  # three relations, one asked
    assert len(torchrl_ppo.ppo(batches=2, frames=64, lr=1e-3)) == 2


def test_torchrl_accepts_the_text_spaces() -> None:
    pytest.importorskip("torchrl")
    import gymnasium as gym
    from torchrl.envs import GymWrapper, check_env_specs

    check_env_specs(GymWrapper(gym.make("research_rl.envs:ReSearch-v0")))


def test_stable_baselines_trains_on_choices() -> None:
    pytest.importorskip("stable_baselines3")
    import sb3_ppo

    rewards = sb3_ppo.main(["--steps", "512", "--envs", "4"])
    assert 0.0 <= rewards[-1] <= 1.0


def test_gem_plays() -> None:
    gem = pytest.importorskip("gem")
    from research_rl.envs.adapters.gem import ENV_ID, ReSearchGem

    env = gem.make(ENV_ID, max_searches=3, top_k=1)
    assert isinstance(env, ReSearchGem)
    prompt, info = env.reset(seed=3)
    assert info["question"] in prompt
    assert env.reset(seed=3)[0] == prompt
    found, reward, terminated, truncated, _ = env.step(env.sample_random_action())
    assert found.startswith(" <result>\n")
    assert (reward, terminated, truncated) == (0.0, False, False)
    twin, fresh = env.spawn(same_state=True), env.spawn(max_searches=0)
    assert twin.step(ANSWER.format("x"))[1:3] == (0.1, True)
    assert env.step(SEARCH.format("boss"))[4]["num_searches"] == 2
    fresh.reset()
    assert fresh.step(SEARCH.format("boss"))[3]
    with pytest.raises(ValueError, match="same_state=True"):
        env.spawn(same_state=True, top_k=2)


def test_gem_plays_many() -> None:
    gem = pytest.importorskip("gem")
    from research_rl.envs.adapters.gem import ENV_ID

    envs = gem.make_vec([ENV_ID] * 2, vec_kwargs=[{"max_searches": 1}] * 2)
    prompts, _ = envs.reset(seed=1)
    assert len(prompts) == 2
    found, *_ = envs.step([SEARCH.format("boss")] * 2)
    assert all(text.startswith(" <result>\n") for text in found)


def test_openenv_serves_sessions() -> None:
    pytest.importorskip("openenv.core.env_server")
    import openenv_play

    with openenv_play.server(top_k=1, max_searches=3) as url:
        assert openenv_play.play(url, index=5) == openenv_play.play(url, index=5)
        assert openenv_play.play(url, index=5)[-1] == 1.0
        assert openenv_play.tasks(url) == 300


class LengthReward(RewardFunction):
    """Pays by the length of what the policy wrote; random weights earn nothing else."""

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return a reward between 0 and 1."""
        return Reward(sum(len(s.text) for s in segments if s.kind == "policy") % 7 / 7)


def test_trl_trains_over_openenv(trl: Any, tmp_path: Path) -> None:
    """Masks are those of the server's results, rewards those of the same turns played here."""
    pytest.importorskip("openenv.core.env_server")
    import openenv_play
    import openenv_train
    from test_adapters import BIAS

    from research_rl.envs import ReSearchEnv

    policy = tiny.policy(bias={**BIAS, "<eos>": 4.0})
    world: dict[str, Any] = {"top_k": 1, "max_searches": 3, "prompt": "{prompt}"}
    world["reward"] = LengthReward()
    args = openenv_train.parse(["--steps", "2", "--tokens", "200", "--out", str(tmp_path)])
    with openenv_play.server(**world) as url:
        trainer = openenv_train.make_trainer(url, policy.model, policy.tokenizer, args)
        rollouts = trainer.rollout_func
        asked = [row["prompt"] for row in rollouts.rows()[:2]]
        played = rollouts(asked * 8, trainer)
        before = [weight.clone() for weight in trainer.model.parameters()]
        trainer.train()
    searched = 0
    names = ("prompt_ids", "completion_ids", "env_mask", "logprobs", "earned")
    for prompt, *row in zip(asked * 8, *(played[name] for name in names), strict=True):
        first, ids, mask, logprobs, earned = row
        env = ReSearchEnv(**world)
        text = env.reset(options={"question": rollouts.numbers[prompt]})[0]
        assert first == policy.encode(text)
        assert all(own or value == 0 for own, value in zip(mask, logprobs, strict=True))
        spans = [
            (own, [token for _, token in part])
            for own, part in groupby(zip(mask, ids, strict=True), key=itemgetter(0))
        ]
        paid = 0.0
        for own, span in spans[: -1 if len(ids) == args.tokens else None]:  # the last was cut off
            if own:
                text, reward, *_ = env.step(policy.decode(span))
                paid += reward
            else:
                assert span == policy.encode(text)
                searched += 1
        assert earned == pytest.approx(paid)
    assert searched > 3
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["step"] for entry in log] == [1, 2]
    assert max(entry["grad_norm"] for entry in log) > 0
    moved = zip(before, trainer.model.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)


def test_a_loop_trains_on_gem() -> None:
    pytest.importorskip("gem")
    import gem_loop

    rewards = gem_loop.train(updates=30, groups=4, size=8, lr=0.03)
    assert sum(rewards[-10:]) > sum(rewards[:10])

"""The warm start: demonstrations are what the environment would give, and no true fact is shown."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from doubles.tiny import ScriptedEngine

from research_rl.agents import LMPolicy, PolicyConfig, SamplingParams, collect_rollouts
from research_rl.envs.protocols import PROTOCOLS, RESEARCH, Protocol
from research_rl.envs.synthetic.world import RELATIONS, SyntheticWorld
from research_rl.envs.types import Passage, Question, Retriever
from research_rl.trainers.algorithms import SFT
from research_rl.trainers.learner import Learner
from research_rl.trainers.settings import Updates
from research_rl.trainers.warmstart.callback import (
    REPORT,
    WarmStartConfig,
    _batches,
    _Encoder,
    _gradient,
    _tokenizer,
    is_warm_started,
    warm_start,
)
from research_rl.trainers.warmstart.demonstrations import TAGS, WORDS, Demonstration, Demonstrator
from research_rl.trainers.warmstart.tiny_model import TinyModelConfig, tiny_model, word_tokenizer
from research_rl.trainers.warmstart.words import bare_prompt

WORLD = SyntheticWorld(num_people=60)
TINY = TinyModelConfig(hidden_size=32, max_length=256)
CONFIG = WarmStartConfig(num_people=60, steps=3, batch_size=4, model=TINY)


class Script(Retriever):
    """Finds what a demonstration found, whoever asks for it."""

    def __init__(self, demonstration: Demonstration) -> None:
        self.found = {query: Passage(query, text) for query, text in demonstration.found}

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [[self.found[query]] for query in queries]


def policy_of(protocol: Protocol) -> LMPolicy:
    tokenizer = _tokenizer(WORLD, protocol)
    return LMPolicy(tiny_model(tokenizer, TINY, seed=0), tokenizer)


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    return policy_of(RESEARCH)


def demonstrations(good_share: float, n: int, seed: int = 0) -> list[Demonstration]:
    make = Demonstrator(WORLD.names, WORLD.facts, good_share, 4, seed)
    return [make() for _ in range(n)]


def facts_of(demonstration: Demonstration) -> list[tuple[str, str, str]]:
    """(relation, person, other) of every result."""
    words = [result.split("\n")[2].split() for result in demonstration.results]
    return [(w[1], w[3], w[5]) for w in words]


def answer_of(demonstration: Demonstration) -> str:
    return demonstration.turns[-1].split("\\boxed{")[1].split("}")[0].strip()


@pytest.mark.parametrize("good_share", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_demonstration_has_the_ids_that_the_environment_would_give(
    name: str, good_share: float
) -> None:
    protocol = PROTOCOLS[name]
    policy = policy_of(protocol)
    make = Demonstrator(WORLD.names, WORLD.facts, good_share, 4, 0, protocol=protocol)
    for number in range(8):
        demonstration = make()
        env = gym.make_vec(
            "ReSearch-v0",
            num_envs=1,
            autoreset_mode="Disabled",
            index=Script(demonstration),
            top_k=1,
            max_searches=4,
            prompt=bare_prompt(protocol),
            protocol=protocol,
        )
        question = Question(str(number), demonstration.question, ("nobody",))
        engine = ScriptedEngine(policy, [demonstration.turns])
        rollout = collect_rollouts([question], env, policy, engine, SamplingParams(236))[0]
        shown = _Encoder(policy, protocol)(demonstration)
        assert shown.sequence.prompt_ids == rollout.sequence.prompt_ids
        assert shown.sequence.response_ids == rollout.sequence.response_ids
        assert shown.sequence.loss_mask == rollout.sequence.loss_mask
        assert rollout.reward.format_error is None
        assert rollout.turns == list(demonstration.turns), "text and ids are the same thing"
        assert policy.tokenizer.unk_token_id not in rollout.sequence.response_ids


def test_no_true_fact_is_shown() -> None:
    shown = [fact for d in demonstrations(0.2, 1000) for fact in facts_of(d)]
    assert len(shown) > 1000
    assert all(WORLD.facts[relation, person] != other for relation, person, other in shown)


def test_a_good_demonstration_searches_innermost_first_and_answers_with_the_last_name() -> None:
    for demonstration in demonstrations(1.0, 50):
        words = demonstration.question.split()
        asked = [word for word in words if word in RELATIONS]
        facts = facts_of(demonstration)
        assert [relation for relation, _, _ in facts] == asked[::-1]
        assert [person for _, person, _ in facts] == [words[-2], *(o for _, _, o in facts[:-1])]
        assert answer_of(demonstration) == facts[-1][2]


def test_a_bad_demonstration_uses_only_what_it_has_seen_and_is_seldom_right() -> None:
    right = 0
    for demonstration in demonstrations(0.0, 500):
        words = demonstration.question.split()
        asked = [word for word in words if word in RELATIONS]
        seen = [words[-2]]
        facts = facts_of(demonstration)
        for relation, person, other in facts:
            assert relation in asked
            assert person in seen
            seen.append(other)
        assert answer_of(demonstration) in seen
        chain = [relation for relation, _, _ in facts] == asked[::-1]
        right += chain and answer_of(demonstration) == seen[-1]
    assert 0 < right < 100


def test_demonstrations_follow_their_seed() -> None:
    assert demonstrations(0.2, 5, seed=1) == demonstrations(0.2, 5, seed=1)
    assert demonstrations(0.2, 5, seed=1) != demonstrations(0.2, 5, seed=2)
    with pytest.raises(ValueError, match=r"good_share must be between 0 and 1, got 1\.5"):
        demonstrations(1.5, 1)


def test_the_loss_is_that_of_the_tokens_the_policy_wrote(policy: LMPolicy) -> None:
    rollouts = [*map(_Encoder(policy, RESEARCH), demonstrations(0.2, 8))]
    expected = 0.0
    for rollout in rollouts:
        sequence = rollout.sequence
        inputs = torch.tensor([sequence.prompt_ids + sequence.response_ids])
        with torch.no_grad():
            logprobs = policy(inputs, torch.ones_like(inputs), entropy=False).logprobs[0]
        behind = logprobs[len(sequence.prompt_ids) - 1 :]
        expected -= float(behind[torch.tensor(sequence.loss_mask)].sum())
    learner = Learner(policy, SFT(), Updates(group_size=1, compute_dtype="auto"))
    loss = _gradient(learner, rollouts)
    assert loss == pytest.approx(expected / (36 * 8), rel=0.02)  # bf16 against fp32
    policy.zero_grad()


def test_a_batch_holds_rollouts_of_similar_lengths(policy: LMPolicy) -> None:
    make = Demonstrator(WORLD.names, WORLD.facts, 0.2, 4, seed=0)
    batches = _batches(_Encoder(policy, RESEARCH), make, 8, 0)
    seen = [[len(one.sequence.response_ids) for one in next(batches)] for _ in range(16)]
    assert all(len(lengths) == 8 for lengths in seen)
    spread = max(max(lengths) - min(lengths) for lengths in seen)
    assert spread < max(map(max, seen)) - min(map(min, seen))


def test_the_model_is_made_once_and_loads_like_any_other(tmp_path: Path) -> None:
    folder = warm_start(tmp_path / "model", CONFIG)
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    assert report["settings"]["good_share"] == 0.2
    assert report["settings"]["model"]["hidden_size"] == 32
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert warm_start(folder, CONFIG) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    loaded = LMPolicy.from_config(PolicyConfig(str(folder)))
    text = " <result>\nBakset\nthe boss of Bakset is Domlor .\n</result> \\boxed{ no } unheard"
    fresh = word_tokenizer([*TAGS, *WORDS, *WORLD.vocabulary])
    assert loaded.encode(text) == fresh(text, add_special_tokens=False)["input_ids"]
    assert loaded.eos_ids == {fresh.eos_token_id}
    assert loaded.pad_id == fresh.pad_token_id


def test_other_settings_make_it_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warm_start(tmp_path / "model", CONFIG)
    for left in ("model.partial", ".model.partial"):
        (tmp_path / left).mkdir()  # of one that was killed, in 0.1.0 and now
    with caplog.at_level(logging.WARNING):
        warm_start(tmp_path / "model", replace(CONFIG, steps=2))
    assert "other settings" in caplog.text
    report = json.loads((tmp_path / "model" / REPORT).read_text(encoding="utf-8"))
    assert report["settings"]["steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_another_maker_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="made by one"):
        warm_start(tmp_path, CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_weights_follow_the_seed_and_nothing_else(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        torch.manual_seed(random.randrange(1000))
        folder = warm_start(tmp_path / name, replace(CONFIG, seed=seed))
        policy = LMPolicy.from_config(PolicyConfig(str(folder)))
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    first = weights("a", 1)
    assert torch.equal(first, weights("b", 1))
    assert not torch.equal(first, weights("c", 2))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    def final_loss(name: str, steps: int) -> float:
        folder = warm_start(tmp_path / name, replace(CONFIG, steps=steps, batch_size=8))
        return float(json.loads((folder / REPORT).read_text())["final_loss"])

    assert final_loss("long", 60) < 0.6 * final_loss("short", 2)


def test_where_people_have_aliases_the_good_ones_search_again() -> None:
    make = Demonstrator(WORLD.names, WORLD.facts, 1.0, 4, seed=0, alias_share=0.5)
    searched_again = 0
    for demonstration in (make() for _ in range(200)):
        results = [result.split("\n")[2].split() for result in demonstration.results]
        hops = demonstration.question.count(" of ")
        aliases = [words for words in results if words[2] == "called"]
        assert len(results) == hops + len(aliases) <= 4
        for words, after in itertools.pairwise(results):
            if words[2] == "called":  # P is called A . -> the boss of A is B .
                assert after[3] == words[3]
                searched_again += 1
        assert answer_of(demonstration) == results[-1][5]
    assert 50 < searched_again < 300


def test_where_facts_are_missing_the_good_ones_say_so_and_only_then() -> None:
    make = Demonstrator(WORLD.names, WORLD.facts, 1.0, 4, seed=0, unanswerable_share=0.3)
    unknown = 0
    for demonstration in (make() for _ in range(200)):
        query, passage = demonstration.found[-1]
        assert all(f"{asked} is " in found for asked, found in demonstration.found[:-1])
        stated = f"{query} is " in passage
        answer = answer_of(demonstration)
        assert (answer == "unknown") == (not stated)
        unknown += answer == "unknown"
    assert 50 < unknown < 150  # 1 - .7 ** hops


def test_of_the_bad_ones_some_say_that_there_is_no_answer() -> None:
    make = Demonstrator(WORLD.names, WORLD.facts, 0.0, 4, seed=0, unanswerable_share=0.3)
    answers = [answer_of(make()) for _ in range(300)]
    assert 60 < answers.count("unknown") < 120


def test_the_tokenizer_knows_the_answer_of_unanswerable_questions(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=0, unanswerable_share=0.1)
    policy = LMPolicy.from_config(PolicyConfig(str(warm_start(tmp_path, config))))
    assert policy.decode(policy.encode("unknown")).strip() == "unknown"
    assert not is_warm_started(tmp_path, replace(config, unanswerable_share=0.0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_ends_behind_a_step_and_a_rerun_makes_it(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pytorch_lightning.utilities.rank_zero")
    steps = 0
    take = torch.optim.AdamW.step

    def step(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        os.kill(os.getpid(), number)
        return take(self, *args)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(SystemExit) as stop:
            warm_start(tmp_path / "model", CONFIG)
    assert stop.value.code == 128 + number
    assert steps == 1  # it was finished
    assert signal.getsignal(number) == before
    assert "nothing of the warm start is kept" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert (warm_start(tmp_path / "model", CONFIG) / REPORT).is_file()


def test_sigterm_while_it_is_saved_keeps_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = LMPolicy.save_pretrained

    def stopped(self: LMPolicy, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, folder)

    monkeypatch.setattr(LMPolicy, "save_pretrained", stopped)
    with pytest.raises(SystemExit):
        warm_start(tmp_path / "model", CONFIG)
    assert is_warm_started(tmp_path / "model", CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]

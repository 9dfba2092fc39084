"""The warm start of the tiny model, in place of pretraining, so that a run needs no download.

The model learns to predict the next token of a bad policy's demonstrations (see demonstrations).
It learns the words, the form of a rollout and to copy; what to search, and when to stop, is left to
reinforcement learning. ``warmstart.json`` in the model's folder holds the settings.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from research_rl.agents import Rollout, Sequence, cpu_abilities
from research_rl.agents.policy import LMPolicy
from research_rl.envs import Question, Reward
from research_rl.envs.protocols import RESEARCH, Protocol, get_protocol
from research_rl.envs.synthetic import SyntheticWorld
from research_rl.envs.system import folder_in_place, progress_bar
from research_rl.trainers.algorithms import SFT, Batch
from research_rl.trainers.checkpoint import disk_errors_named, readable, sigterm_noted
from research_rl.trainers.learner import Learner
from research_rl.trainers.settings import Updates
from research_rl.trainers.warmstart.demonstrations import TAGS, WORDS, Demonstration, Demonstrator
from research_rl.trainers.warmstart.tiny_model import TinyModelConfig, tiny_model, word_tokenizer
from research_rl.trainers.warmstart.words import CHAT_TEMPLATE, bare_prompt, marks_of, words_of

log = logging.getLogger(__name__)

REPORT = "warmstart.json"
_FORMAT = 1  # of the settings; if it changes, folders with an older number are made again
_BATCHES_SORTED = 16  # batches whose demonstrations are sorted by length together, to pad less
_TOKENS = 36  # policy tokens of a usual demonstration. The loss of a batch is divided by its size
# times this and not by its own tokens, with which the tokens of short rollouts would weigh more


@dataclass
class WarmStartConfig:
    """Everything that decides the weights of the warm start.

    Args:
        num_people: of the synthetic world of the run.
        world_seed: of that world; none of its facts is shown.
        max_searches: most searches in a demonstration.
        good_share: share of demonstrations that search correctly.
        steps: optimizer steps; 0 keeps the random weights.
        batch_size: demonstrations in a step.
        lr: highest learning rate; it rises over the first steps and falls by a cosine.
        model: shape of the model.
        seed: of the weights and the demonstrations.
        alias_share: share of the people in the demonstrations whose facts are filed under another
            name.
        protocol: that the demonstrations are written in.
        unanswerable_share: share of the facts in the demonstrations that no passage states, and
            that are answered with "unknown".
    """

    num_people: int = 600
    world_seed: int = 0
    max_searches: int = 4
    good_share: float = 0.2
    steps: int = 450
    batch_size: int = 48
    lr: float = 3e-3
    model: TinyModelConfig = field(default_factory=TinyModelConfig)
    seed: int = 0
    alias_share: float = 0.0
    protocol: str | Protocol = "research"
    unanswerable_share: float = 0.0


class WarmStart(pl.Callback):
    """Makes the warm-started model before the policy is loaded, unless its folder holds it already.

    Args:
        folder: of the model; the policy's ``model`` names the same folder.
        config: how it is made. A folder that was made with other settings is made again.

    Raises:
        FileExistsError: the folder holds something that no warm start has made.
    """

    def __init__(self, folder: str, config: WarmStartConfig | None = None) -> None:
        self.folder = Path(folder)
        self.config = config or WarmStartConfig()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the model on the first rank while the others wait; only a new fit makes it.

        Raises:
            ValueError: the folder holds no such model, and no new fit begins.
        """
        fits = trainer.state.fn == TrainerFn.FITTING
        if not fits or (trainer.ckpt_path and (Path(self.folder) / REPORT).is_file()):
            if not is_warm_started(self.folder, self.config):
                raise ValueError(
                    f"the warm start in {self.folder} must be that of the run, got none or one of "
                    "other settings; use the settings of the run (its config.yaml), or another "
                    "folder"
                )
        else:
            if not is_warm_started(self.folder, self.config):
                # opens the index: if it is missing, that is an error now and not minutes later
                pl_module.setup(stage)
            if trainer.is_global_zero:
                warm_start(self.folder, self.config)
        trainer.strategy.barrier("warm start")


def warm_start(folder: str | Path, config: WarmStartConfig) -> Path:
    """Train the tiny model, write it to ``folder`` and return the folder.

    A folder that holds the model already is not changed.

    Raises:
        FileExistsError: the folder holds something that no warm start has made.
        SIGTERMException: SIGTERM was received; the folder is unchanged or complete.
    """
    target = Path(folder)
    if is_warm_started(target, config):
        return target
    if (target / REPORT).is_file():
        log.warning("%s was made with other settings; the warm start is done anew", target)
    started = time.perf_counter()
    shares = config.alias_share, config.unanswerable_share
    world = SyntheticWorld(config.num_people, config.world_seed, *shares)
    tokenizer = _tokenizer(world, get_protocol(config.protocol))
    model = tiny_model(tokenizer, config.model, config.seed)
    policy = LMPolicy(model, tokenizer)
    with sigterm_noted() as check:
        loss = _train(policy, world, config, check)
        report = {
            "settings": _settings(config),
            "final_loss": loss,
            "precision": "bf16-mixed" if bool(cpu_abilities()) else "32-true",
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(time.perf_counter() - started, 1),
        }
        _save(policy, target, report)
        check("the warm start is done and kept; the same command goes on from it")
    return target


def _tokenizer(world: SyntheticWorld, protocol: Protocol) -> PreTrainedTokenizerFast:
    if protocol == RESEARCH:
        return word_tokenizer([*TAGS, *WORDS, *world.vocabulary])
    words = [*words_of(protocol), *WORDS, *world.vocabulary]
    tokenizer = word_tokenizer(words, marks_of(protocol))
    if protocol.keeps_eos:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


class _Encoder:
    """Encodes demonstrations piece by piece, as rollouts are; the last turn ends with the eos.

    Each word is encoded once and remembered, for the tokenizer has one token for each word.
    """

    def __init__(self, policy: LMPolicy, protocol: Protocol) -> None:
        self._protocol, self._prompt = protocol, bare_prompt(protocol)
        self._policy = policy
        self._word = cache(policy.encode)
        self._eos = [int(policy.tokenizer.eos_token_id)]

    def __call__(self, demonstration: Demonstration) -> Rollout:
        """Return the rollout that sampling would have given, with log-probs of 0."""
        question = demonstration.question
        sequence = Sequence(self._policy.encode_prompt(self._prompt, question), finish="eos")
        turns, results = demonstration.turns, demonstration.results
        for turn, result in [*zip(turns, results, strict=False), (turns[-1], None)]:
            ids = self._encode(turn)
            ids += self._eos * self._protocol.writes_eos(turn, last=result is None)
            for token in ids:
                sequence.append_sampled(token, 0.0)
            if result is not None:
                sequence.append_given(self._reply(result, ids))
        return Rollout(
            Question("", question, ("",)), sequence, Reward(0.0), list(turns), list(results)
        )

    def _reply(self, result: str, turn: list[int]) -> list[int]:
        if self._protocol == RESEARCH:
            return self._encode(result)
        return self._policy.encode_reply(self._protocol, result, turn)

    def _encode(self, text: str) -> list[int]:
        return [i for word in text.split() for i in self._word(word)]


def _train(
    policy: LMPolicy, world: SyntheticWorld, config: WarmStartConfig, check: Callable[[str], None]
) -> float | None:
    """Train the policy; return the mean loss of the last tenth of the steps, None without steps.

    The loss is in nats per usual token, see ``_TOKENS``. ``check`` is called after each step and
    may end the run.
    """
    demonstrator = Demonstrator(
        names=[*world.names, *world.aliases.values()],
        true_facts=world.facts,
        good_share=config.good_share,
        max_searches=config.max_searches,
        seed=config.seed,
        alias_share=config.alias_share,
        protocol=get_protocol(config.protocol),
        unanswerable_share=config.unanswerable_share,
    )
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    learner = Learner(policy, SFT(), Updates(group_size=1, compute_dtype="auto"))
    encode = _Encoder(policy, get_protocol(config.protocol))
    batches = _batches(encode, demonstrator, config.batch_size, config.seed)
    losses: list[float] = []
    policy.train()
    todo = islice(batches, config.steps)
    with progress_bar(todo, "warm start", config.steps, unit="step") as progress:
        for step, rollouts in enumerate(progress):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _schedule(step, config.steps)
            loss = _gradient(learner, rollouts)
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            learner.moved()
            losses.append(loss)
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            check("nothing of the warm start is kept; the same command makes it anew")
    tail = losses[-max(1, config.steps // 10) :]
    return round(sum(tail) / len(tail), 4) if tail else None


def _gradient(learner: Learner, rollouts: list[Rollout]) -> float:
    """Add the gradient of a batch, by the learner of ``research sft``; return the loss."""
    (batch,) = Batch.from_rollouts(rollouts, learner.policy.pad_id).minibatches(1, None, _itself)
    learner.score(batch)
    usual = float(batch.loss_mask.sum()) / (_TOKENS * len(rollouts))
    batch.weights = learner.algorithm.weights(batch) * usual
    found = [
        learner.backward(batch[part], lambda loss: loss.backward())  # type: ignore[no-untyped-call]
        for part in learner.portions(batch)
    ]
    return sum(float(one["loss"]) for one in found)


def _itself(value: Tensor) -> Tensor:
    return value  # the mean over one rank


def _schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: it rises for 40 steps, then falls to a twentieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / 40) * (0.95 * cosine + 0.05)


def _batches(
    encode: _Encoder, demonstrator: Demonstrator, size: int, seed: int
) -> Iterator[list[Rollout]]:
    """Yield batches of ``size`` rollouts without end; those of a batch have similar lengths."""
    rng = random.Random(seed)
    while True:
        rows = sorted(
            (encode(demonstrator()) for _ in range(size * _BATCHES_SORTED)),
            key=lambda one: len(one.sequence.prompt_ids) + len(one.sequence.response_ids),
        )
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(batches)
        yield from batches


def is_warm_started(folder: str | Path, config: WarmStartConfig) -> bool:
    """Return whether the folder holds the model of these settings.

    Raises:
        FileExistsError: the folder holds something that no warm start has made.
    """
    target = Path(folder)
    report = target / REPORT
    if report.is_file():
        made_with = json.loads(report.read_text(encoding="utf-8"))["settings"]
        return bool(made_with == json.loads(json.dumps(_settings(config))))
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(
            f"the folder of a warm start must be new or made by one, got {target} without "
            f"{REPORT}; choose another folder or remove this one"
        )
    return False


def _settings(config: WarmStartConfig) -> dict[str, Any]:
    settings = {"format": _FORMAT, **asdict(config)}
    for name in ("alias_share", "unanswerable_share"):
        if not settings[name]:
            del settings[name]  # folders that were made before this setting existed lack it
    del settings["protocol"]
    if (protocol := get_protocol(config.protocol)) != RESEARCH:
        settings["protocol"] = protocol.name
    return settings


def _save(policy: LMPolicy, target: Path, report: dict[str, Any]) -> None:
    """Write the Hugging Face folder beside the target and rename it, so that it is complete.

    Raises:
        ExportError: it cannot be written.
    """
    shutil.rmtree(target.with_name(target.name + ".partial"), ignore_errors=True)  # 0.1.0, killed
    with disk_errors_named("write the warm start to", target), folder_in_place(target) as partial:
        policy.save_pretrained(partial)
        readable(partial)
        (partial / REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")

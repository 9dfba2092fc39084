"""One training step, ours and TRL's, of a planned amount of work; what vs_trl.py and gpu.py time.

Both sides load the same random model from a folder, sample the same numbers of tokens (benchmarks/
planned.py has the plan) and learn by GRPO with a reference and AdamW. Ours is ReSearchModule under
Lightning; its environment is the plan. TRL's is GRPOTrainer with a ``rollout_func`` that generates
in batches, turn by turn, as its own loop over tools does, without the parsing of tool calls; no
gradient checkpointing, one optimizer step on all rollouts, no logging.

Started as a program it is one of the sides: it takes a step for each line of its input and answers
with a line of JSON.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytorch_lightning as pl
import torch
from meters import Gate, Metered, Stages, TheirMetered
from planned import WORKS, Plan, PlannedEngine, Work, generate_turns, make_plan
from torch import Tensor
from torch.utils.data import DataLoader

from research_rl.agents import LMPolicy, SamplingParams, Sequence
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.types import Engine, Rollout
from research_rl.envs.types import Question, Reward
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.learner import Learner
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.settings.options import Updates

SIDES = ("ours", "trl")
RATE, KL = 1e-6, 1e-3


def reward(row: int) -> float:
    """Differs inside each group, so that every rollout is learned from."""
    return row % 7 / 7


def rewarded(questions: list[Question], sampled: list[Sequence]) -> list[Rollout]:
    """The rollouts of a plan, each with its reward and without searches."""
    return [
        Rollout(question, sequence, Reward(reward(row)), [], [])
        for row, (question, sequence) in enumerate(zip(questions, sampled, strict=True))
    ]


class _TimedLearner(Learner):
    stages: Stages

    def score(self, batch: Batch) -> None:
        """See Learner."""
        with self.stages.timed("reference"):
            super().score(batch)

    def backward(
        self, rows: Batch, backward: Callable[[Tensor], Any], compare: bool = False
    ) -> dict[str, Tensor]:
        """See Learner; the gradient of the output head is made in the forward pass."""

        def timed(loss: Tensor) -> None:
            with self.stages.timed("backward"):
                backward(loss)

        with self.stages.timed("forward"):
            return super().backward(rows, timed, compare)


class PlannedModule(ReSearchModule):
    """ReSearchModule whose rollouts follow a plan instead of an environment."""

    stages: Stages

    def transfer_batch_to_device(self, batch: Any, device: torch.device, number: int) -> Any:
        """Leave the questions as they are."""
        return batch

    def _play(
        self,
        questions: list[Question],
        params: SamplingParams,
        seeds: list[int],
        policy: LMPolicy,
        engine: Engine,
    ) -> list[Rollout]:
        assert isinstance(engine, PlannedEngine)
        plan = engine.plan

        def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
            return [plan.result if s.finish == "stop" else None for _, s in stopped]

        budget = SamplingParams(max_response_tokens=plan.budget)
        with self.stages.timed("rollout"):
            found = engine.run(plan.prompts, budget, on_stop, seeds)
        self.stages.counts["sampled"] += engine.stats.sampled_tokens
        self.stages.counts["prefilled"] += engine.stats.prefilled_tokens
        return rewarded(questions, found)

    def _make_learner(self) -> Learner:
        learner = _TimedLearner(self.policy, self.algorithm, self.updates, reference=self.reference)
        learner.stages = self.stages
        return learner


def our_module(
    folder: str,
    dtype: str,
    work: Work,
    ragged: bool,
    stages: Stages,
    lora: LoraConfig | None = None,
    graphs: bool = False,
    **options: Any,
) -> PlannedModule:
    """Our side: a dtype below float32 is that of the sampling and of the learner's copies.

    Args:
        folder: of the model.
        dtype: float32 or bfloat16.
        work: its sizes.
        ragged: whether its turns are.
        stages: count the seconds.
        lora: an adapter, if one is trained; the weights below it then have the dtype.
        graphs: whether decode steps are CUDA graphs.
        options: of Updates.
    """
    low: Any = None if dtype == "float32" else dtype

    def engine(policy: LMPolicy) -> PlannedEngine:
        sampling = PlannedEngine(policy, dtype=low, cuda_graphs=graphs)
        return sampling.follow(make_plan(work, ragged, policy))

    options.setdefault("micro_batch_tokens", 4096)
    module = PlannedModule(
        PolicyConfig(folder, dtype="float32" if lora is None or low is None else low, lora=lora),
        algorithm=GRPO(kl_coef=KL),
        engine=engine,
        updates=Updates(group_size=work.group_size, compute_dtype=None if lora else low, **options),
        optimizer=lambda p: torch.optim.AdamW(p, lr=RATE, fused=True),
    )
    module.stages = stages
    return module


def run_ours(module: PlannedModule, work: Work, steps: int, callback: pl.Callback) -> None:
    """Train for so many steps."""
    questions = [Question(str(i), f"question {i}", ("answer",), {}) for i in range(work.groups)]
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(module, DataLoader(questions, batch_size=work.groups, collate_fn=list))  # type: ignore[arg-type]


def _written(plan: Plan, row: int) -> list[int]:
    """1 for each token of a response that the policy wrote, 0 for results."""
    result = [0] * len(plan.result)
    mask: list[int] = []
    for number, size in enumerate(plan.turns[row]):
        mask += (result if number else []) + [1] * size
    return mask


def trl_trainer(
    folder: str,
    dtype: str,
    plan: Plan,
    work: Work,
    steps: int,
    stages: Stages,
    peft_config: Any = None,
    **options: Any,
) -> Any:
    """TRL's side: bfloat16 is its default, autocast on float32 weights; "pure" has bf16 weights.

    Args:
        folder: of the model.
        dtype: float32, bfloat16 or pure.
        plan: what to sample.
        work: its sizes.
        steps: how many.
        stages: count the seconds.
        peft_config: an adapter, if one is trained.
        options: of GRPOConfig.

    Raises:
        ModuleNotFoundError: trl is not installed: pip install -e '.[bench]'.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import unwrap_model_for_generation

    class Timed(GRPOTrainer):  # type: ignore[misc]
        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            with stages.timed("forward" if torch.is_grad_enabled() else "reference"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

        def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            with stages.timed("forward"):
                return super()._compute_loss(*args, **kwargs)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        whole = unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator)
        with stages.timed("rollout"), whole as model:
            history = generate_turns(model, plan, stages.counts)
        sizes = [len(p) for p in plan.prompts]
        return {
            "prompt_ids": plan.prompts,
            "completion_ids": [h[n:] for h, n in zip(history, sizes, strict=True)],
            "logprobs": None,
            "env_mask": [_written(plan, row) for row in range(len(history))],
        }

    def paid(completions: list[str], **kwargs: Any) -> list[float]:
        return [reward(row) for row in range(len(completions))]

    options.setdefault("per_device_train_batch_size", work.groups * work.group_size)
    config = GRPOConfig(
        output_dir=str(Path(folder) / "trl"),
        num_generations=work.group_size,
        max_completion_length=plan.budget,
        max_steps=steps,
        beta=KL,
        learning_rate=RATE,
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype == "bfloat16",
        model_init_kwargs={"dtype": "bfloat16" if dtype == "pure" else "float32"},
        gradient_checkpointing=False,
        shuffle_dataset=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    data = Dataset.from_dict({"prompt": [str(i) for i in range(work.groups)]})
    trainer = Timed(folder, paid, config, data, rollout_func=rollout, peft_config=peft_config)
    plain = trainer.accelerator.backward

    def backward(*args: Any, **kwargs: Any) -> None:
        with stages.timed("backward"):
            plain(*args, **kwargs)

    trainer.accelerator.backward = backward
    return trainer


def main() -> None:
    """Be a side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("ours", "trl"))
    parser.add_argument("folder", help="of the model")
    parser.add_argument("size", choices=sorted(WORKS))
    parser.add_argument("dtype")
    parser.add_argument("shape", choices=("uniform", "ragged"))
    parser.add_argument("steps", type=int)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    stages, work, ragged = Stages(), WORKS[args.size], args.shape == "ragged"
    gate = Gate(stages, answers)
    if args.side == "ours":
        low = "float32" if args.dtype == "float32" else "bfloat16"
        module = our_module(args.folder, low, work, ragged, stages)
        run_ours(module, work, args.steps, Metered(gate))
        return
    policy = LMPolicy.from_config(PolicyConfig(args.folder))
    plan = make_plan(work, ragged, policy)
    del policy
    trainer = trl_trainer(args.folder, args.dtype, plan, work, args.steps, stages)
    trainer.add_callback(TheirMetered(gate))
    trainer.train()


if __name__ == "__main__":
    main()

"""Questions for the trainer, in batches that are seeded, divided among ranks and resumable.

A checkpoint says "pass 2, 480 questions served", and the resumed run serves the 481st, also on
another number of ranks or with another batch size.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from research_rl.agents.engines import seed_of
from research_rl.envs import Question
from research_rl.envs.questions import find_split, read_questions
from research_rl.envs.synthetic import Split, SyntheticWorld
from research_rl.trainers.audit import unanswerable
from research_rl.trainers.prompts import prompts_that_fit

log = logging.getLogger(__name__)
Role = Literal["train", "val", "test"]
Served = TypeVar("Served")
_Contents = tuple[SyntheticWorld, dict[Split, int], dict[Split, Mapping[int, float]]]
SPLITS: dict[Role, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("validation", "dev", "val"),
    "test": ("test",),
}
"""Names of the splits of a folder or a Hub data set; the first one found is taken."""


@dataclass
class WorldConfig:
    """The synthetic world as files: a corpus, its index and three sets of questions.

    Args:
        folder: where it is written, once.
        num_people: number of people; train, val and test each have people of their own.
        seed: decides every fact and question.
        train_hops: ratio of the numbers of hops among the training questions.
        eval_hops: numbers of hops of the validation and test questions.
        num_train: training questions in all.
        num_val: validation questions of each number of hops.
        num_test: test questions of each number of hops.
        alias_share: share of the people whose facts are filed under another name, which the first
            search for such a person returns.
        unanswerable_share: share of the facts that no passage states; a question that needs one has
            the answer "unknown".
    """

    folder: str = "data/world"
    num_people: int = 600
    seed: int = 0
    train_hops: dict[int, float] = field(default_factory=lambda: {1: 1.0, 2: 4.0})
    eval_hops: list[int] = field(default_factory=lambda: [1, 2])
    num_train: int = 3000
    num_val: int = 60
    num_test: int = 200
    alias_share: float = 0.0
    unanswerable_share: float = 0.0

    def write(self, run: str | None = None) -> None:
        """Write the world, unless the folder holds it already.

        Args:
            run: folder of the run; a world of other settings in it is the run's own, and replaced.

        Raises:
            FileExistsError: the folder holds something else, or a world of other settings.
        """
        world, sizes, hops = self._contents()
        root = Path(run or ".").resolve()
        own = root != Path.cwd() and Path(self.folder).resolve().is_relative_to(root)
        world.write(self.folder, sizes=sizes, hops=hops, replace=own)

    def is_there(self) -> bool:
        """Return whether the folder holds a world, of these or of other settings."""
        return (Path(self.folder) / "world.json").is_file()

    def check(self) -> None:
        """Check that the folder holds the world of these settings.

        Raises:
            ValueError: the folder holds no world, or one of other settings.
        """
        if not self.is_there():
            raise ValueError(
                f"data.world must have been written by `research fit`, got none in {self.folder}; "
                "name the run's folder with --trainer.default_root_dir"
            )
        world, sizes, hops = self._contents()
        if not world.is_in(self.folder, sizes, hops):
            raise ValueError(
                f"data.world must have the settings that {self.folder} was written with, got "
                "others; use those of its run (its config.yaml), or another data.world.folder"
            )

    def _contents(self) -> _Contents:
        even = dict.fromkeys(self.eval_hops, 1.0)
        val, test = self.num_val * len(even), self.num_test * len(even)
        sizes: dict[Split, int] = {"train": self.num_train, "val": val, "test": test}
        hops: dict[Split, Mapping[int, float]]
        hops = {"train": self.train_hops, "val": even, "test": even}
        shares = (self.alias_share, self.unanswerable_share)
        return SyntheticWorld(self.num_people, self.seed, *shares), sizes, hops

    def questions(self, role: Role) -> str:
        """Return the file that holds the questions of a role."""
        return f"{self.folder}/{role}.jsonl"


def _check_batches(questions: int, batch_size: int, trains: bool, ranks: int) -> None:
    """Refuse a batch size for which there are too few questions or too many ranks."""
    if not questions:
        raise ValueError("at least one question must be given, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; set --data.batch_size")
    if trains and batch_size > questions:
        raise ValueError(
            f"batch_size must be at most the number of training questions {questions}, got "
            f"{batch_size}; set --data.batch_size"
        )
    if trains and batch_size % ranks:
        raise ValueError(
            f"batch_size must be a multiple of the number of ranks {ranks}, got {batch_size}; set "
            "--data.batch_size"
        )


class QuestionLoader(Generic[Served]):
    """Batches of questions, with a state that Lightning saves in the checkpoint.

    The order within a pass over the questions depends on (seed, pass) only. The state is the pass
    and the number of its questions that all ranks together have served. So a resumed run goes on
    with the next question, on any number of ranks and with any batch size. Lightning's own sampler
    for several ranks would undo this; ``use_distributed_sampler`` is false in the shipped configs.

    Args:
        questions: what to serve.
        batch_size: questions in a batch, over all ranks together.
        seed: for training: shuffles each pass anew, and the last, smaller batch of a pass is
            dropped. None, for evaluation: keeps the order and serves every question.
        rank: of this process, which serves every world_size-th question of a batch.
        world_size: number of ranks.

    Raises:
        ValueError: the batch size does not fit the questions or the ranks.
    """

    def __init__(
        self,
        questions: Sequence[Served],
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_batches(len(questions), batch_size, seed is not None, world_size)
        self.questions = questions
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.passes = 0
        self.served = 0

    def __len__(self) -> int:
        """Return the number of batches in a pass, the same on every rank."""
        whole, rest = divmod(len(self.questions), self.batch_size)
        return whole + int(self.seed is None and rest > 0)

    def __iter__(self) -> Iterator[list[Served]]:
        """Serve the rest of the current training pass, or in evaluation every question.

        A rank's share of a small batch may be empty.
        """
        order = list(range(len(self.questions)))
        first, last = 0, len(order) - 1
        if self.seed is not None:
            self._turn_pass()  # a run resumed with larger batches may find too few questions left
            order = self._order()
            first, last = self.served, len(order) - self.batch_size
        for start in range(first, last + 1, self.batch_size):
            rows = order[start : start + self.batch_size]
            if self.seed is not None:
                self.served = start + self.batch_size
                self._turn_pass()
            yield [self.questions[row] for row in rows[self.rank :: self.world_size]]

    def upcoming(self) -> list[Served]:
        """Return this rank's share of the next training batch, without serving it."""
        self._turn_pass()
        rows = self._order()[self.served : self.served + self.batch_size]
        return [self.questions[row] for row in rows[self.rank :: self.world_size]]

    def _order(self) -> list[int]:
        """The rows in the order of this pass."""
        order = list(range(len(self.questions)))
        random.Random(seed_of(self.seed or 0, "pass", self.passes)).shuffle(order)
        return order

    def _turn_pass(self) -> None:
        if self.served + self.batch_size > len(self.questions):
            self.passes, self.served = self.passes + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return how many passes and questions were served in training, equal on all ranks."""
        return {"passes": self.passes, "served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the questions that were served."""
        self.passes, self.served = state["passes"], state["served"]


class QuestionDataModule(pl.LightningDataModule):
    """Questions of a run, by path or Hugging Face name.

    Of a folder or a Hub data set the split of the same name is read (validation, dev or val for
    ``val``), unless the name gives another one: ``data/hotpotqa#dev``.

    Args:
        train: questions to learn from.
        val: held-out questions for the learning curve and the choice of a checkpoint.
        test: questions of ``research test`` and ``research predict``.
        batch_size: training questions of an iteration, over all ranks together.
        val_batch_size: questions played at once in validation, test and prediction.
        seed: decides the order of the training questions.
        world: write the synthetic world first; its questions are used for each of train, val and
            test that is not given.
        limit_train: use only the first so many training questions.
        limit_val: use only the first so many validation questions.
        limit_test: use only the first so many test questions.
        max_prompt_tokens: leave out questions whose prompt has more tokens, and say how many. None
            leaves out none: a prompt that the model has no room for is an error before the first
            step.
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
        super().__init__()
        if max_prompt_tokens is not None and max_prompt_tokens < 1:
            raise ValueError(
                f"data.max_prompt_tokens must be at least 1 or null, got {max_prompt_tokens}"
            )
        self.max_prompt_tokens = max_prompt_tokens
        for name, size in (("batch_size", batch_size), ("val_batch_size", val_batch_size)):
            if size < 1:
                raise ValueError(f"data.{name} must be at least 1, got {size}; set --data.{name}")
        self.sources: dict[Role, str | None] = {"train": train, "val": val, "test": test}
        self.limits: dict[Role, int | None] = {
            "train": limit_train,
            "val": limit_val,
            "test": limit_test,
        }
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.seed = seed
        self.world = world
        self._missing: dict[Role, frozenset[str] | None] = {}

    def prepare_data(self) -> None:
        """Write the synthetic world if one is configured; Lightning calls this on one process.

        Only a new fit writes it; others check that the world of the run is there.

        Raises:
            ValueError: no fit begins, and the world is missing or has other settings.
            FileExistsError: as ``WorldConfig.write`` raises it.
        """
        if self.world is None:
            return
        trainer = self.trainer
        fits = trainer is None or trainer.state.fn == TrainerFn.FITTING
        resumes = trainer is not None and bool(trainer.ckpt_path)
        if fits and (not resumes or not self.world.is_there()):
            self.world.write(getattr(trainer, "default_root_dir", None))
        else:
            self.world.check()

    def setup(self, stage: str) -> None:
        """Read the questions that the stage needs, so that a wrong file is an error at once."""
        given = [role for role, source in self.sources.items() if source is not None]
        if self.world is not None and given and self._searches_world():
            log.warning(
                "questions of data.%s come from the files given, not from data.world, whose index "
                "may hold none of their facts",
                ", data.".join(given),
            )
        roles: dict[str, tuple[Role, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for role in roles.get(stage, ("test",)):
            if stage != "fit" or role == "train" or self._has(role):
                found = self.questions(role)
                if role == "train":  # before the warm start, which takes minutes
                    ranks = 1 if self.trainer is None else self.trainer.world_size
                    _check_batches(len(found), self.batch_size, True, ranks)

    def _searches_world(self) -> bool:
        """Return whether the index that is searched is the world's; True if nobody can tell."""
        env = getattr(getattr(self.trainer, "lightning_module", None), "env_config", None)
        index = getattr(env, "index", None)
        if index is None or self.world is None:
            return True
        return isinstance(index, str) and Path(index).is_relative_to(self.world.folder)

    def _has(self, role: Role) -> bool:
        return self._source(role) is not None

    def _source(self, role: Role) -> str | None:
        source = self.sources[role]
        return self.world.questions(role) if source is None and self.world is not None else source

    def missing(self, role: Role, searched: object) -> frozenset[str] | None:
        """Return the ids of questions without an answer in the index; None if no audit told."""
        if role not in self._missing:
            place = self._source(role)
            if place and Path(place).is_dir() and (split := find_split(place, SPLITS[role])):
                place = f"{place}#{split}"
            self._missing[role] = unanswerable(place, lambda: read_questions(str(place)), searched)
        return self._missing[role]

    def questions(self, role: Role) -> list[Question]:
        """Read the questions of a role.

        Raises:
            ValueError: none are configured, the file is empty, or the limit is not positive.
            QuestionError: a line of the file is not a question.
            FileNotFoundError: there is no such file.
        """
        source, limit = self._source(role), self.limits[role]
        if source is None:
            raise ValueError(
                f"data.{role} must name a question file, got none; set --data.{role} FILE"
            )
        if limit is not None and limit < 1:
            raise ValueError(f"limit_{role} must be at least 1, got {limit}")
        questions = read_questions(source, find_split(source, SPLITS[role]))[:limit]
        if not questions:
            raise ValueError(f"{source} must hold at least one question, got an empty file")
        return questions

    def train_dataloader(self) -> QuestionLoader[Any]:
        """Return shuffled batches; the last, smaller batch of a pass is dropped."""
        return self._loader("train", self.batch_size, self.seed)

    def val_dataloader(self) -> QuestionLoader[Question] | list[QuestionLoader[Question]]:
        """Return every validation question in order; an empty list if a fit has none."""
        validating = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        if not self._has("val") and not validating:
            return []
        return self._loader("val", self.val_batch_size)

    def test_dataloader(self) -> QuestionLoader[Question]:
        """Return every test question in order."""
        return self._loader("test", self.val_batch_size)

    def predict_dataloader(self) -> QuestionLoader[Question]:
        """Return every test question in order."""
        return self._loader("test", self.val_batch_size)

    def transfer_batch_to_device(
        self, batch: list[Question], device: torch.device, dataloader_idx: int
    ) -> list[Question]:
        """Return the questions as they are.

        Lightning's own version raises on a batch of frozen dataclasses.
        """
        return batch

    def _loader(
        self, role: Role, batch_size: int, seed: int | None = None
    ) -> QuestionLoader[Question]:
        questions = self.questions(role)
        module = getattr(self.trainer, "lightning_module", None)
        if hasattr(module, "policy"):
            questions = prompts_that_fit(questions, role, module, self.max_prompt_tokens)
        return QuestionLoader(questions, batch_size, seed, *self.place())

    def place(self) -> tuple[int, int]:
        """Return the rank of this process and the number of ranks."""
        at = self.trainer
        return (0, 1) if at is None else (at.global_rank, at.world_size)

"""The commands ``research fit``, ``validate``, ``test`` and ``predict``, made with Lightning's CLI.

A config is named by its file or, if it ships with the package, by its name:
``research fit --config quickstart --trainer.max_steps 3``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import set_parsing_settings
from jsonargparse.typing import PositiveInt
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info
from transformers.utils.logging import disable_progress_bar

# Imported so that a YAML may name their classes without the module: ModelCheckpoint, GRPO, ...
from research_rl.agents import engines, web  # noqa: F401
from research_rl.envs import retrieval  # noqa: F401
from research_rl.envs.system import told_if_full, warn_of_room, write_whole
from research_rl.trainers import (  # noqa: F401
    algorithms,
    checkpoint,
    credit,
    distributed,
    warmstart,
)
from research_rl.trainers.callbacks import (  # noqa: F401
    ExportPolicy,
    LearningCurve,
    RolloutLog,
    SendAlong,
    takes_more_than_numbers,
)
from research_rl.trainers.checkpoint import (
    AtomicCheckpointIO,
    KeepMetrics,
    RunLogger,
    find_checkpoint,
)
from research_rl.trainers.cli.loggers import check_installed_for, may_fail, that_start
from research_rl.trainers.cli.parser import ResearchParser, Unresolved
from research_rl.trainers.cli.start import (
    check_none_elsewhere,
    check_nothing_is_lost,
    check_trainer_options,
    date_to_write,
    hold,
    hold_checkpoints,
    leads,
    set_threads,
    take_run_logger,
    warn_of_changes,
    warn_of_lost_rows,
    warn_of_overridden,
)
from research_rl.trainers.data import QuestionDataModule
from research_rl.trainers.health import CollapseGuard, HealthMonitor, SignalCheck  # noqa: F401
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.overview import RunPage
from research_rl.trainers.progress import RunProgressBar, metrics_table
from research_rl.trainers.recorder import FlightRecorder  # noqa: F401
from research_rl.trainers.settings import (
    CONFIGS,
    ShippedConfigFile,
    UsageError,
    careful,
    distrusted,
    find_config,
    refuse_code,
    shipped_configs,
)

log = logging.getLogger(__name__)
_BROKEN_REFERENCE = re.compile(
    r"Error trying to access ([\w.]+):.*full_key: (?:fit|validate|test|predict)\.(\S+)", re.DOTALL
)


class ResearchCLI(LightningCLI):
    """The four subcommands of the trainer.

    Everything a run writes lies under ``trainer.default_root_dir``: a fit's logs and checkpoints
    directly in it, those of another command in a folder of its name, so that looking at a run
    never overwrites it. A fit holds the folder against other fits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._holds, self._unresolved = False, Unresolved()
        with ExitStack() as self._held:
            super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser whose ``--config`` knows the shipped names."""
        parser = self.parser_class(**kwargs)
        if isinstance(parser, ResearchParser):
            parser.unresolved = self._unresolved
        parser.add_argument(
            "-c",
            "--config",
            action=ShippedConfigFile,
            help="a YAML file or a shipped config; repeat it to merge several",
        )
        made: LightningArgumentParser = parser
        return made

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what concerns the whole process."""
        parser.add_argument(
            "--torch_threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads of torch and faiss; unset leaves it to them",
        )
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="begin anew in a folder that holds a run; it is replaced",
        )

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would let the checkpoint's override it.

        The one private method of Lightning that is overridden; see lightning_internals.py.
        """

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse a model's own code where a config that is not trusted asks for it."""
        super().parse_arguments(parser, args)
        if (file := distrusted()) is not None:
            words = " ".join(map(str, args or sys.argv))
            policy = self.config[self.config["subcommand"]]["model"].policy
            asked = ("trust_remote_code", "attn_implementation")
            theirs = [name for name in asked if f"--model.policy.{name}" not in words]
            refuse_code({name: policy[name] for name in theirs}, file)

    def before_instantiate_classes(self) -> None:
        """Refuse what would fail or overwrite a run later; set the number of threads."""
        trainer = self._option("trainer")
        check_trainer_options(trainer)
        self._check_folder()
        warn_of_overridden(str(self.subcommand), self.config[self.subcommand])
        chat = self._option("model").policy.chat_template
        if chat.date is None:
            chat.date = date_to_write(self._root(), self._option("ckpt_path"))
        take_run_logger(trainer)
        check_installed_for(trainer.get("logger"))
        set_threads(self._option("torch_threads"))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Return the trainer, with atomic checkpoints in a folder known beforehand.

        It has our progress bar where no other is configured: Lightning's spoils a log file. A fit
        has a SignalCheck and a RunPage.
        """
        settings = self.config_init[self.subcommand]["trainer"]
        if settings.get("enable_model_summary") is None:  # Lightning's counts FLOPs, and finds 0
            kwargs["enable_model_summary"] = False
        if self.subcommand != "fit" and settings.get("logger") is not False:
            kwargs["logger"] = RunLogger(self._root(), name="", version=self.subcommand)
        given = settings.get("callbacks") or []
        listed = given if isinstance(given, list) else [given]
        shows = settings.get("enable_progress_bar") is not False and not settings.get("barebones")
        more: list[pl.Callback] = []
        if shows and not any(isinstance(c, ProgressBar) for c in listed):
            more.append(RunProgressBar())
        loggers = settings.get("logger")
        shown = takes_more_than_numbers(loggers if isinstance(loggers, list) else [loggers])
        ours: list[type[pl.Callback]] = [SignalCheck, RunPage, *([SendAlong] if shown else [])]
        for one in ours if self.subcommand == "fit" else []:
            if not any(isinstance(c, one) for c in listed):
                more.append(one())
        if more:
            kwargs["callbacks"] = [*listed, *more]
        trainer = super().instantiate_trainer(**kwargs)
        may_fail(trainer.loggers)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self._root() / "checkpoints")
        return trainer

    def _check_folder(self) -> None:
        """Refuse to fit where another fit is at work, or to begin anew where a run is."""
        if self.subcommand != "fit" or self._is_dry() or not leads():
            return
        root = self._root()
        if root.exists():
            self._hold()
        check_nothing_is_lost(root, self._option("ckpt_path"), self._option("overwrite"))

    def before_fit(self) -> None:
        """Lock the folders that are written to, and warn of options that have changed since."""
        if not leads() or self._is_dry():
            return
        self._hold()
        name = self._option("ckpt_path")
        hold_checkpoints(self._held, self.trainer, name, self._option("overwrite"))
        if name:
            everyone: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            (saver,) = (c for c in everyone if isinstance(c, SaveConfigCallback))
            warn_of_changes(self._root(), name, saver.parser.dump(saver.config, skip_unset=False))
        warn_of_lost_rows(self.trainer.loggers)

    def _is_dry(self) -> bool:
        return bool(self._option("trainer").get("fast_dev_run"))

    def _hold(self) -> None:
        if not self._holds:
            hold(self._held, self._root())
        self._holds = True

    def fit(self, ckpt_path: Any = None, **kwargs: Any) -> None:
        """Train."""
        root = self._root()
        if leads() and not self._is_dry():
            warn_of_room(root, "a run with its checkpoints", self._checkpoints())
        if leads():
            self.trainer.loggers = that_start(self.trainer.loggers)
        left = "its checkpoints and metrics are whole"
        with told_if_full(root, left, "go on with --ckpt_path last"):
            self.trainer.fit(**kwargs, ckpt_path=self._checkpoint(ckpt_path))

    def _checkpoints(self) -> int:
        """Bytes of the last checkpoint, of the best, and of one that is being written."""
        sizes = ((p.numel() * p.element_size(), p.requires_grad) for p in self.model.parameters())
        return int(3 * sum(size * (3 if trained else 1) for size, trained in sizes))

    def validate(self, **kwargs: Any) -> None:
        """Score the validation questions and show the means."""
        self._evaluate(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Score the test questions and show the means."""
        self._evaluate(self.trainer.test, kwargs)

    def _evaluate(self, evaluate: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        verbose, name = kwargs.pop("verbose", True), kwargs.pop("ckpt_path", None)
        folder = self._root() / str(self.subcommand)
        with told_if_full(folder, "the run itself is as it was"):
            found = evaluate(**kwargs, ckpt_path=self._checkpoint(name), verbose=False)
        for metrics in found if verbose else ():
            rank_zero_info("%s", metrics_table(metrics))

    def predict(self, ckpt_path: Any = None, **kwargs: Any) -> None:
        """Answer the test questions into ``predict/predictions.jsonl``, one row a question."""
        with told_if_full(self._root() / "predict", "a file of before is as it was"):
            self._predict(self._checkpoint(ckpt_path), kwargs)

    def _predict(self, path: str | None, kwargs: dict[str, Any]) -> None:
        batches: Any = self.trainer.predict(**kwargs, ckpt_path=path) or []
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        name = "predictions.jsonl" if ranks == 1 else f"predictions.{rank}.jsonl"
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for batch in batches for row in batch)
        file = write_whole(self._root() / "predict" / name, rows)
        rank_zero_info("wrote %s", file)

    def _root(self) -> Path:
        return Path(self._option("trainer").get("default_root_dir") or Path.cwd())

    def _option(self, name: str) -> Any:
        """Return the value of an option of this subcommand."""
        return self.config[self.subcommand][name]

    def _checkpoint(self, name: str | None) -> str | None:
        """Return the path of the checkpoint that ``--ckpt_path`` names, None for none."""
        if name is None and self.subcommand != "fit":
            log.warning(
                "no --ckpt_path: %s asks the model that model.policy names, as it was before any "
                "training here; --ckpt_path last or best asks a run's",
                self.subcommand,
            )
        elif name and self.subcommand != "fit" and leads():
            now = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
            warn_of_changes(self._root(), name, now, goes_on=False)
        if name is None or "://" in name:
            return name
        try:
            return str(find_checkpoint(name, self._checkpoint_folder()))
        except FileNotFoundError as error:
            if self.subcommand != "fit" or name != "last":
                raise
            if not self._is_dry():
                check_none_elsewhere(self._root(), self._option("overwrite"))
            # A job that is restarted until it is done says `last` from its first start on.
            log.warning("nothing to resume, training starts at its beginning: %s", error)
            return None

    def _checkpoint_folder(self) -> Path:
        found = (getattr(c, "dirpath", None) for c in self.trainer.checkpoint_callbacks)
        return Path(next((d for d in found if d), self._root() / "checkpoints"))


def _quiet() -> None:
    """Hide what Lightning says at every start and a user cannot act on."""
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # its own use of a deprecated function
        ".*overridden `transfer_batch_to_device` in `LightningModule`.*",  # on purpose
        ".*It is recommended to use `self.log.'(val|test)/.*",  # gathered before they are logged
        ".*LightningCLI.s args parameter is intended.*",  # research sft gives its own
        ".*Checkpoint directory .* exists and is not empty.*",  # so it is after every resume
    ):
        warnings.filterwarnings("ignore", message)
    if not sys.stderr.isatty():  # a log file is no place for bars of transformers
        disable_progress_bar()  # type: ignore[no-untyped-call]
    for module in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{module}").addFilter(_is_news)


_NO_NEWS = ("litlogger", "PU available: ", "`weights_only` was not set")
"""In what Lightning logs: an advertisement, chips that are not there, its own choice."""


def _is_news(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _NO_NEWS)


def run(
    args: ArgsType = None,
    cli: type[ResearchCLI] = ResearchCLI,
    module: type[ReSearchModule] = ReSearchModule,
    data: type[QuestionDataModule] = QuestionDataModule,
) -> ResearchCLI:
    """Parse, build and run; ``args`` None reads the command line.

    Args:
        args: of the command line, the subcommand first.
        cli: builds and runs.
        module: whose arguments are the section ``model``.
        data: whose arguments are the section ``data``.

    Raises:
        SystemExit: the command line or a config is wrong (status 2, the reason on stderr).
    """
    _quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    given: Any = sys.argv[1:] if args is None else args
    with careful([str(arg) for arg in given]):
        return _cli(args, cli, module, data)


def _cli(
    args: ArgsType,
    cli: type[ResearchCLI],
    module: type[ReSearchModule],
    data: type[QuestionDataModule],
) -> ResearchCLI:
    try:
        return cli(
            module,
            data,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [KeepMetrics()]},
            # omegaconf+ resolves references after every file and flag is merged; plain omegaconf
            # keeps what one meant when its own file was read.
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "default_env": True,
                "env_prefix": "RESEARCH",
                "allow_abbrev": False,
            },
            parser_class=ResearchParser,
            args=args,
        )
    except OmegaConfBaseException as error:
        found = _BROKEN_REFERENCE.search(str(error))
        if found is None:
            raise
        raise UsageError(
            f"{found[2]} refers to {found[1]}, which is null or not there; give {found[2]} a "
            f"value of its own, or set {found[1]}"
        ) from error


def main(args: list[str]) -> None:
    """Run the console script's command; Lightning reads it from sys.argv, as its ranks do."""
    run()


__all__ = ["CONFIGS", "ResearchCLI", "find_config", "main", "run", "shipped_configs"]

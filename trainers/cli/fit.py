"""``research fit | validate | test | predict``: LightningCLI with shipped configs by name."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import PositiveInt
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from transformers.utils.logging import disable_progress_bar

# Imported so that a YAML may name their classes without the module: ModelCheckpoint, GRPO, ...
from research_rl.agents import engines, web  # noqa: F401
from research_rl.envs import retrieval  # noqa: F401
from research_rl.envs.system import alone_in, write_whole
from research_rl.trainers import (  # noqa: F401
    algorithms,
    callbacks,
    checkpoint,
    credit,
    distributed,
    health,
    warmstart,
)
from research_rl.trainers.checkpoint import (
    AtomicCheckpointIO,
    KeepMetrics,
    RunLogger,
    changes,
    find_checkpoint,
    policy_config,
    run_in,
    with_references,
)
from research_rl.trainers.data import QuestionDataModule
from research_rl.trainers.health import SignalCheck
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.progress import RunProgressBar, metrics_table
from research_rl.trainers.recorder import FlightRecorder  # noqa: F401
from research_rl.trainers.settings import (
    CONFIGS,
    OneLineParser,
    ShippedConfigFile,
    UsageError,
    find_config,
    shipped_configs,
)

log = logging.getLogger(__name__)
_CHANGES = 8
"""Options that are named if they are others than before."""
_CSV_LOGGER = [f"pytorch_lightning.loggers{module}.CSVLogger" for module in ("", ".csv_logs")]
_RUN_LOGGER = f"{checkpoint.__name__}.{RunLogger.__name__}"
_BROKEN_REFERENCE = re.compile(
    r"Error trying to access ([\w.]+):.*full_key: (?:fit|validate|test|predict)\.(\S+)", re.DOTALL
)


class ResearchParser(OneLineParser, LightningArgumentParser):
    """Lightning's parser with errors of one line and configs that keep their references."""

    _unresolved = ""
    """The config of this process before its references were resolved."""

    def dump(self, cfg: Any, *args: Any, **kwargs: Any) -> str:
        """Return the config as YAML; ``${...}`` stands where the user wrote it.

        jsonargparse dumps a config to resolve it, which is where the references are seen.
        """
        saves = "trainer.default_root_dir" in cfg and "subcommand" not in cfg
        if saves and "overwrite" in cfg:
            cfg = cfg.clone()
            cfg["overwrite"] = False  # said for one start alone
        text: str = super().dump(cfg, *args, **kwargs)
        if "subcommand" in cfg and "${" in text:
            section = yaml.safe_load(text).get(cfg["subcommand"], {})
            ResearchParser._unresolved = yaml.safe_dump(section)
        elif saves and ResearchParser._unresolved:
            return with_references(text, ResearchParser._unresolved)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the reason; somebody who named no config is shown where to begin."""
        named = any(arg.startswith(("-c", "--config")) for arg in sys.argv)
        if "required" in message and not named:
            message += "; a config has it all: research fit --config quickstart"
        super().error(message, ex)


class ResearchCLI(LightningCLI):
    """The four subcommands of the trainer.

    Everything a run writes lies under ``trainer.default_root_dir``: a fit's logs and checkpoints
    directly in it, those of another command in a folder of its name, so that looking at a run
    never overwrites it. A fit holds the folder against other fits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._holds = False
        with ExitStack() as self._held:
            super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser whose ``--config`` knows the shipped names."""
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ShippedConfigFile,
            help="a YAML file or a shipped config; repeat it to merge several",
        )
        return parser

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

    def before_instantiate_classes(self) -> None:
        """Refuse what would fail or overwrite a run later; set the number of threads."""
        self._check_trainer_options()
        self._check_folder()
        self._say_what_is_overridden()
        self._fix_the_date()
        self._take_run_logger()
        threads = self._option("torch_threads")
        if threads is None:
            return
        torch.set_num_threads(threads)
        if find_spec("faiss"):
            import faiss

            faiss.omp_set_num_threads(threads)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Return the trainer, with atomic checkpoints in a folder known beforehand.

        It has our progress bar where no other is configured: Lightning's spoils a log file. A fit
        has a SignalCheck.
        """
        settings = self.config_init[self.subcommand]["trainer"]
        if self.subcommand != "fit" and settings.get("logger") is not False:
            kwargs["logger"] = RunLogger(self._root(), name="", version=self.subcommand)
        given = settings.get("callbacks") or []
        listed = given if isinstance(given, list) else [given]
        shows = settings.get("enable_progress_bar") is not False and not settings.get("barebones")
        more: list[pl.Callback] = []
        if shows and not any(isinstance(c, ProgressBar) for c in listed):
            more.append(RunProgressBar())
        if self.subcommand == "fit" and not any(isinstance(c, SignalCheck) for c in listed):
            more.append(SignalCheck())
        if more:
            kwargs["callbacks"] = [*listed, *more]
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self._root() / "checkpoints")
        return trainer

    def _check_trainer_options(self) -> None:
        """Name our own options where Lightning's would be refused without a hint."""
        trainer = self._option("trainer")
        for name, unset, ours in (
            ("gradient_clip_val", None, "model.updates.max_grad_norm"),
            ("accumulate_grad_batches", 1, "model.updates.micro_batch_size"),
        ):
            if (value := trainer.get(name)) not in (None, unset):
                raise UsageError(
                    f"trainer.{name} must be left out, got {value}; an iteration makes its updates "
                    f"itself: set {ours}"
                )

    def _check_folder(self) -> None:
        """Refuse to fit where another fit is at work, or to begin anew where a run is."""
        name, root = self._option("ckpt_path"), self._root()
        if self.subcommand != "fit" or self._is_dry() or not _leads():
            return
        if root.exists():
            self._hold()
        if name in ("last", "best") or (name and Path(name).is_relative_to(root)):
            return
        held = run_in(root)
        if held and not self._option("overwrite"):
            raise UsageError(
                f"{root} holds a run already ({held}); to go on with it add --ckpt_path last, to "
                "replace it add --overwrite, to keep it choose another "
                "--trainer.default_root_dir"
            )

    def _fix_the_date(self) -> None:
        """Write down the day that a chat template takes for today; a run that goes on keeps its."""
        chat = self._get(self.config, "model").policy.chat_template
        if chat.date is None:
            chat.date = self._date_of_the_run() or date.today().isoformat()

    def _date_of_the_run(self) -> str | None:
        """The day that stands in the config beside the checkpoint, if there is one."""
        name = self._get(self.config, "ckpt_path")
        if not name:
            return None
        run = self._root() if name in ("last", "best") else Path(name).parent.parent
        with suppress(OSError, ValueError, TypeError, yaml.YAMLError):  # named where it is read
            return policy_config(run / "config.yaml", run).chat_template.date
        return None

    def before_fit(self) -> None:
        """Keep other fits out of the folder, which is made now at the latest."""
        if _leads() and not self._is_dry():
            self._hold()
            self._say_what_is_changed()
            self._say_what_is_deleted()

    def _say_what_is_changed(self) -> None:
        """Warn of options that a run which goes on had otherwise before."""
        name = self._option("ckpt_path")
        if not name or "://" in name:
            return
        here = name in ("last", "best")
        if here and not run_in(self._root()):
            return  # nothing to go on with; fit says so
        file = (self._root() if here else Path(name).parent.parent) / "config.yaml"
        everyone: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        (saver,) = (c for c in everyone if isinstance(c, SaveConfigCallback))
        now = saver.parser.dump(saver.config, skip_none=False)
        try:
            found = changes(file.read_text(encoding="utf-8"), now)
        except (OSError, ValueError, yaml.YAMLError) as error:
            log.warning(
                "%s cannot be compared with this run's options (%s): a changed one is not told",
                file,
                getattr(error, "strerror", None) or error,
            )
            return
        for change in found[:_CHANGES]:
            log.warning("the run goes on with another option than it had: %s", change)
        if len(found) > _CHANGES:
            log.warning("and with %d other ones", len(found) - _CHANGES)

    def _take_run_logger(self) -> None:
        """Let a RunLogger, with its settings, stand where a config names Lightning's CSVLogger.

        It writes the same file, and a run that is resumed goes on in it.
        """
        given = self._option("trainer").get("logger")
        for logger in given if isinstance(given, list) else [given]:
            named = isinstance(logger, Namespace) and logger.class_path in _CSV_LOGGER
            if named and "://" not in str(logger.init_args.save_dir):
                logger.class_path = _RUN_LOGGER

    def _say_what_is_deleted(self) -> None:
        """Warn of loggers that would not go on in their file."""
        for logger in self.trainer.loggers:
            if isinstance(logger, CSVLogger) and not isinstance(logger, RunLogger):
                log.warning(
                    "%s in %s begins a new metrics.csv, also where a run goes on; RunLogger, in a "
                    "folder of this machine, appends to it",
                    type(logger).__name__,
                    logger.log_dir,
                )

    def _is_dry(self) -> bool:
        return bool(self._option("trainer").get("fast_dev_run"))

    def _hold(self) -> None:
        if self._holds:
            return
        said = "is held by another run that is not over"
        instead = "choose another --trainer.default_root_dir"
        self._held.enter_context(alone_in(self._root(), said, instead))
        self._holds = True

    def _say_what_is_overridden(self) -> None:
        """Warn of environment variables that a config or the command line overrides."""
        prefix = f"RESEARCH_{str(self.subcommand).upper()}__"
        for variable, text in sorted(os.environ.items()):
            key = variable.removeprefix(prefix).lower().replace("__", ".")
            if variable.startswith(prefix) and key in self.config[self.subcommand]:
                value = self._option(key)
                if str(value) != str(yaml.safe_load(text)):
                    log.warning("%s has no effect: a config or an option says %s", variable, value)

    def fit(self, ckpt_path: Any = None, **kwargs: Any) -> None:
        """Train."""
        self.trainer.fit(**kwargs, ckpt_path=self._checkpoint(ckpt_path))

    def validate(self, **kwargs: Any) -> None:
        """Score the validation questions and show the means."""
        self._evaluate(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Score the test questions and show the means."""
        self._evaluate(self.trainer.test, kwargs)

    def _evaluate(self, evaluate: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        verbose, name = kwargs.pop("verbose", True), kwargs.pop("ckpt_path", None)
        for metrics in evaluate(**kwargs, ckpt_path=self._checkpoint(name), verbose=False):
            if verbose:
                rank_zero_info("%s", metrics_table(metrics))

    def predict(self, ckpt_path: Any = None, **kwargs: Any) -> None:
        """Answer the test questions into ``predict/predictions.jsonl``, one row a question."""
        path = self._checkpoint(ckpt_path)
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
        if name is None or "://" in name:
            return name
        try:
            return str(find_checkpoint(name, self._checkpoint_folder()))
        except FileNotFoundError as error:
            if self.subcommand != "fit" or name != "last":
                raise
            # A job that is restarted until it is done says `last` from its first start on.
            log.warning("nothing to resume, training starts at its beginning: %s", error)
            return None

    def _checkpoint_folder(self) -> Path:
        found = (getattr(c, "dirpath", None) for c in self.trainer.checkpoint_callbacks)
        return Path(next((d for d in found if d), self._root() / "checkpoints"))


def _leads() -> bool:
    """Whether this is the first of the processes of a run, before Lightning has counted them."""
    first_node = os.environ.get("NODE_RANK", "0") == "0"  # each node's launcher is started by hand
    return first_node and getattr(rank_zero_only, "rank", 0) == 0


def _quiet() -> None:
    """Drop what Lightning says at every start and no user of ours can act on."""
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
    notes = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    notes.addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()


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

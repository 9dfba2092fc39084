"""The functions `train`, `evaluate` and `ask`.

``train("quickstart", {"trainer.max_steps": 10})`` is ``research fit --config quickstart
--trainer.max_steps 10`` in this process.
"""

from __future__ import annotations

import argparse
import csv
import logging
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_rl.envs.protocols import spelled_out
from research_rl.envs.retrieval.index import MANIFEST
from research_rl.envs.system import file_mark
from research_rl.trainers.api.configs import ConfigLike, command_words
from research_rl.trainers.settings import careful, usage_errors_raised

if TYPE_CHECKING:
    from research_rl.agents.methods import Prediction
    from research_rl.trainers.agent import Asked, Asker

log = logging.getLogger(__name__)
_kept: dict[str, Asker] = {}
"""What asks the agent of the latest question, by what it was made of."""


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Args:
        folder: of the run; everything it wrote lies there.
        metrics: the newest value of each metric, ``val/f1`` for instance, of the whole run.
        policy: the trained policy as a Hugging Face folder; None where the config has no
            ExportPolicy.
        checkpoint: the best or else the last checkpoint; None where none was written.
    """

    folder: Path
    metrics: dict[str, float] = field(repr=False)
    policy: Path | None
    checkpoint: Path | None

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``: one a training step and one a validation."""
        return _history(self.folder)


def _history(folder: Path) -> list[dict[str, float]]:
    file = folder / "metrics.csv"
    with file.open(newline="", encoding="utf-8") as lines:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Args:
        folder: where rows, card, figures and page are.
        card: the card as markdown.
        rows: those of ``card.csv``: a mean with its interval for each data set, model and method.
    """

    folder: Path
    card: str = field(repr=False)
    rows: list[dict[str, str]] = field(repr=False)


def train(
    *configs: ConfigLike, resume: str | Path | None = None, overwrite: bool = False
) -> Trained:
    """Train a policy, as ``research fit`` does.

    Args:
        configs: shipped names, YAML files and mappings of options, merged in their order.
        resume: ``last``, ``best`` or a checkpoint to go on from; None begins anew.
        overwrite: replace a run that the folder holds.

    Raises:
        UsageError: a config is not there, or says what no run takes.
        FileNotFoundError: something that a config names is missing.
    """
    from research_rl.trainers.cli import run

    words = ["fit", *command_words(configs)]
    words += [] if resume is None else ["--ckpt_path", str(resume)]
    words += ["--overwrite"] if overwrite else []
    with usage_errors_raised():
        done: Any = run(words)
    trainer = done.trainer
    folder = Path(trainer.default_root_dir)
    exported = (getattr(one, "written", None) for one in trainer.callbacks)
    policies = [path for path in exported if path is not None and (path / "config.json").is_file()]
    saved = getattr(trainer.checkpoint_callback, "best_model_path", "") or getattr(
        trainer.checkpoint_callback, "last_model_path", ""
    )
    metrics: dict[str, float] = {}
    for row in _history(folder) if (folder / "metrics.csv").is_file() else ():
        metrics |= {name: value for name, value in row.items() if "/" in name}
    metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return Trained(folder, metrics, next(iter(policies), None), Path(saved) if saved else None)


def evaluate(*configs: ConfigLike) -> Evaluated:
    """Compare methods on data sets, as ``research evaluate`` does.

    An evaluation that was stopped goes on.

    Args:
        configs: shipped names, YAML files and mappings of options, merged in their order:
            ``evaluate("evaluate/quickstart", {"run": "runs/quickstart"})``.

    Raises:
        UsageError: a config is not there, or says what no evaluation takes.
        ValueError: a setting is wrong, or the folder holds rows of other settings.
    """
    from research_rl.trainers.evaluate import prepared, reported

    words = command_words(configs)
    with ExitStack() as stack:
        stack.enter_context(careful(words))
        stack.enter_context(usage_errors_raised())
        evaluation, _ = prepared(words)
        written = reported(evaluation)
        evaluation.check_answered()
    with (evaluation.out / "card.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Evaluated(evaluation.out, written.markdown, rows)


def ask(
    question: str, run: str | PathLike[str] | Trained | None = None, **options: Any
) -> Prediction:
    """Ask a policy a question, as ``research ask`` does.

    The model of the latest call is kept: further questions to it do not load it again, unless its
    weights, its index or what its run says have changed.

    Args:
        question: what is asked.
        run: a finished run: its policy, index, prompt and limits.
        options: those of the command with ``_`` for ``-``: model, server, index, protocol, prompt,
            top_k, max_searches, max_tokens, max_result_tokens, temperature, seed, api, tokenizer,
            dialect.

    Returns:
        The answer, with its searches and passages.

    Raises:
        UsageError: there is no model or no index.
        TypeError: there is no such option.
    """
    from research_rl.trainers.agent import Asked, make_asker, resolve

    known = ["run", *(one.name for one in fields(Asked))]
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"ask has no option {unknown[0]!r} (known: {', '.join(known)})")
    folder = run.folder if isinstance(run, Trained) else run
    texts = {k: str(v) if isinstance(v, PathLike) else v for k, v in options.items()}
    given = {"run": None if folder is None else str(folder), **texts}
    with careful([str(value) for value in options.values()]):
        settings = resolve(argparse.Namespace(**dict.fromkeys(known) | given))
        key = _made_of(settings)
        if key not in _kept:
            _kept.clear()
            _kept[key] = make_asker(settings)
    for note in _kept[key].notes(question):
        log.warning(note)
    return _kept[key].answer([question], [lambda stretch: None])[0]


def _made_of(settings: Asked) -> str:
    """What an agent is made of: its settings, and the state of the files that they name."""
    told = vars(settings) | {"prompt": spelled_out(settings.prompt)}
    protocol = settings.language
    told["protocol"] = (type(protocol), protocol.name, sorted(vars(protocol).items()))
    files = [Path(settings.index) / MANIFEST]
    for folder in (settings.model, settings.tokenizer):
        files += sorted(Path(folder).glob("*")) if folder and Path(folder).is_dir() else []
    return repr((sorted(told.items()), [file_mark(one) for one in files if one.is_file()]))

"""The run of an evaluation: it asks every question of the grid, cell by cell.

Each batch of answers is on disk before the next is asked, so a killed run loses one batch at most.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from tqdm import tqdm

from research_rl.agents import ModelUnavailable
from research_rl.agents.methods import Agent, Prediction
from research_rl.envs import Question
from research_rl.envs.protocols import PROTOCOLS, RESEARCH, Protocol, spelled_out
from research_rl.envs.system import alone_in, clear_partial, digest_stamp, progress_bar
from research_rl.trainers.evaluate.config import (
    EvaluationConfig,
    Method,
    shared_settings,
    what_counts,
)
from research_rl.trainers.evaluate.measures import Cell, Key, Row, RowFile, row_of
from research_rl.trainers.evaluate.models import (
    LoadedModel,
    model_identity,
    other_limits,
    spoken_by,
    time_stamp,
    what_is_missing,
)
from research_rl.trainers.evaluate.settings import EvaluationSettings
from research_rl.trainers.evaluate.sources import Source
from research_rl.trainers.prompts import warn_of_unknown_words
from research_rl.trainers.settings import Stamp, protocol_of, with_contents

log = logging.getLogger(__name__)
EVALUATION_ROWS = "rows.jsonl"
_STAY = "%s: %d questions stay errors; %d of %d were asked again"
_FORMER_STAMPS = (digest_stamp, time_stamp)
"""How earlier versions identified a file of weights, the latest first."""


class Evaluation:
    """The grid of an evaluation: which questions each method is asked, and which are answered.

    Making one reads the questions and rows; models are loaded and rows written inside ``alone``.

    Args:
        config: checked.
        methods: what ``check_config`` returned.
        described: the settings of models on servers and of a retriever, as ``read_config`` returned
            them.

    Raises:
        ValueError: no cell is left, a method cannot run where it should, or the folder holds rows
            of other settings.
        FileNotFoundError: a file, an index or a checkpoint is not there.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        methods: Mapping[str, Method],
        described: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.config, self.methods, self._described = config, methods, described
        self.out = Path(config.out)
        self.cells = choose_cells(config, methods)
        self.sources = {
            name: Source(name, config.datasets[name], config.index, config.limit)
            for name in dict.fromkeys(cell.dataset for cell in self.cells)
        }
        self._check_needs()
        self._now = {cell: self._settings_of(cell) for cell in self.cells}
        self._read()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder for writing, after which the rows in it are read again.

        Raises:
            FileExistsError: another process is writing to it.
            ValueError: it holds rows of other settings by now.
        """
        with alone_in(self.out):
            clear_partial(self.out)
            self._read()
            yield

    def wanted_keys(self) -> Iterator[Key]:
        """The key of every row that a finished evaluation has, in the order of the card."""
        for cell in self.cells:
            for question in self.sources[cell.dataset].questions:
                yield Key(*cell, question.id)

    def wanted(self) -> list[Row]:
        """Return the rows so far, of this grid alone, in the order of the card."""
        return [self.rows.rows[key] for key in self.wanted_keys() if key in self.rows.rows]

    def unanswered(self, cell: Cell) -> list[Question]:
        """Return the questions of a cell that have no row, or one with an error."""
        rows = self.rows.rows
        found = ((q, rows.get(Key(*cell, q.id))) for q in self.sources[cell.dataset].questions)
        return [q for q, row in found if row is None or row["error"] is not None]

    def answer(self) -> None:
        """Ask what is not answered yet; each model is loaded once, and only if questions are left.

        Raises:
            ModelUnavailable: a server gave no answer to several batches in a row.
            RetrieverUnavailable: the search failed.
        """
        self._settings.add(self._now)
        total = sum(1 for _ in self.wanted_keys())
        left = {cell: self.unanswered(cell) for cell in self.cells}
        todo = sum(map(len, left.values()))
        bar = progress_bar(total=total, initial=total - todo, unit="question", smoothing=0.05)
        try:
            for model in dict.fromkeys(cell.model for cell in self.cells):
                cells = [cell for cell in self.cells if cell.model == model and left[cell]]
                if cells:
                    self._answer_with(
                        LoadedModel(self.config.models[model], self.config.protocol),
                        cells,
                        left,
                        bar,
                    )
                    gc.collect()  # free this model before the next is loaded
        finally:
            bar.close()
            self.rows.close()

    def finish(self) -> list[Row]:
        """Put the rows in order, each once, and return those of this grid."""
        if self.rows.rows:
            self.rows.rewrite(self.wanted_keys())
        return self.wanted()

    def check_answered(self) -> None:
        """Refuse to call it a success where a cell has no answer at all, or a judge no verdict.

        Raises:
            ModelUnavailable: one has nothing but errors; it names all of those and the last error.
        """
        by_cell: dict[str, list[str | None]] = {str(cell): [] for cell in self.cells}
        by_judge: dict[str, list[str | None]] = {f"judge {n}": [] for n in self.config.judges}
        for row in self.wanted():
            cell = Cell(row["dataset"], row["model"], row["method"])
            by_cell[str(cell)].append(row["error"])
            for name in self.config.judges:
                if name in row["judge"]:
                    by_judge[f"judge {name}"].append(row["judge"][name]["error"])
        told = {**by_cell, **by_judge}
        silent = {name: errors for name, errors in told.items() if errors and all(errors)}
        if silent:
            raise ModelUnavailable(_unanswered(silent))

    def _read(self) -> None:
        self.rows = RowFile(self.out / EVALUATION_ROWS)
        self._settings = EvaluationSettings(self.out)
        known = {Cell(key.dataset, key.model, key.method) for key in self.rows.rows}
        for cell, settings in self._now.items():
            if cell in known:  # settings without rows may still change
                former = (partial(self._settings_of, cell, one) for one in _FORMER_STAMPS)
                self._settings.check(cell, settings, *former)

    def _answer_with(
        self,
        model: LoadedModel,
        cells: Sequence[Cell],
        left: Mapping[Cell, Sequence[Question]],
        bar: tqdm[Any],
    ) -> None:
        if (policy := model.provided.get("policy")) is not None:
            for name in dict.fromkeys(cell.dataset for cell in cells):
                asked = f"{name}, asked of {cells[0].model}"
                warn_of_unknown_words(self.sources[name].questions, asked, policy)
        for cell in cells:
            bar.set_description(f"{cell.method}, {cell.dataset}")
            source, method = self.sources[cell.dataset], self.methods[cell.method]
            agent = model.agent(method, source, shared_settings(self.config))
            try:
                self._answer_cell(cell, agent, left[cell], bar)
            finally:
                agent.close()

    def _answer_cell(
        self, cell: Cell, agent: Agent, questions: Sequence[Question], bar: tqdm[Any]
    ) -> None:
        fresh = [q for q in questions if Key(*cell, q.id) not in self.rows.rows]
        failed = [q for q in questions if Key(*cell, q.id) in self.rows.rows]
        silent = 0
        for batch in self._batches(fresh):
            predictions = self._answer_batch(cell, agent, batch, bar)
            silent = silent + 1 if _all_failed(predictions) else 0
            if silent == self.config.max_failed_batches:
                raise ModelUnavailable(_silent(cell, predictions, silent))
        self._ask_again(cell, agent, failed, bar)

    def _ask_again(
        self, cell: Cell, agent: Agent, failed: Sequence[Question], bar: tqdm[Any]
    ) -> None:
        """Ask what has only errors; questions that are always refused must not prevent the card.

        Nor must they keep others from being asked: each batch is of questions from everywhere.
        """
        count = -(-len(failed) // self.config.batch_size)
        asked = answered = silent = 0
        for batch in (failed[first::count] for first in range(count)):
            try:
                predictions = self._answer_batch(cell, agent, batch, bar)
            except ModelUnavailable as error:
                log.warning("%s", error)
                break
            asked += len(batch)
            answered += sum(prediction.error is None for prediction in predictions)
            silent = silent + 1 if _all_failed(predictions) else 0
            if silent == self.config.max_failed_batches:
                log.warning("%s", _silent(cell, predictions, silent))
                break
        if answered < len(failed):
            log.warning(_STAY, cell, len(failed) - answered, asked, len(failed))

    def _batches(self, questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
        size = self.config.batch_size
        return (questions[start : start + size] for start in range(0, len(questions), size))

    def _answer_batch(
        self, cell: Cell, agent: Agent, questions: Sequence[Question], bar: tqdm[Any]
    ) -> list[Prediction]:
        predictions = agent.answer(questions)
        self.rows.append(row_of(cell, prediction) for prediction in predictions)
        bar.update(len(predictions))
        return predictions

    def _settings_of(self, cell: Cell, formerly: Stamp | None = None) -> dict[str, Any]:
        """What decides the answers of a cell; the number of questions and the batch do not.

        With ``formerly`` as an earlier version wrote it, which knew prompts and indexes that are
        arguments by their paths.
        """
        config, method = self.config, self.methods[cell.method]
        model, source = config.models[cell.model], self.sources[cell.dataset]
        told = spoken_by(method, model, config.protocol)
        described = dict(self._described)
        if formerly is None:
            described = {name: _by_contents(spec) for name, spec in described.items()}
            told |= {"prompt": spelled_out(told["prompt"])} if "prompt" in told else {}
        return {
            "questions": source.content,
            "searched": (source.takes_shared and described.get("index")) or source.place,
            "model": described.get(f"models.{cell.model}") or model_identity(model, formerly),
            "method": f"{method.agent.__module__}.{method.agent.__qualname__}",
            "init_args": _plain(method.init_args) if formerly else _arguments_of(method),
            "shared": shared_settings(config),
            **_asked_otherwise(told),
        }

    @property
    def protocols(self) -> dict[str, Protocol]:
        """The protocols that rows may be in, by name."""
        found = dict(PROTOCOLS)
        for cell in self.cells:
            method, model = self.methods[cell.method], self.config.models[cell.model]
            told = {**spoken_by(method, model, self.config.protocol), **method.init_args}.get(
                "protocol"
            )
            own = protocol_of(told) if isinstance(told, str) else told
            found |= {own.name: own} if isinstance(own, Protocol) else {}
        return found

    def _check_needs(self) -> None:
        for name, asked in dict.fromkeys((cell.method, cell.model) for cell in self.cells):
            method, model = self.methods[name], self.config.models[asked]
            if others := other_limits(method, model, self.config.top_k):
                log.warning(
                    "%s asks %s otherwise than it was trained: %s; to ask it as in training, give "
                    "these to init_args of the method, and top_k to the evaluation",
                    *(name, asked, others),
                )
        for cell in self.cells:
            method, model = self.methods[cell.method], self.config.models[cell.model]
            lack = what_is_missing(method, model, self.sources[cell.dataset])
            if lack is not None:
                raise ValueError(f"{cell} needs {lack}")


def choose_cells(config: EvaluationConfig, methods: Mapping[str, Method]) -> list[Cell]:
    """Return the cells of the grid that ``only`` selects, in the order of the configuration.

    Raises:
        ValueError: it selects none, or a part of ``only`` is in no name.
    """
    grid = [
        Cell(dataset, model, name)
        for dataset in config.datasets
        for model in config.models
        for name, method in methods.items()
        if (method.models is None or model in method.models)
        and (method.datasets is None or dataset in method.datasets)
    ]
    for part in config.only:
        if not any(_holds(cell, [part]) for cell in grid):
            names = [*config.datasets, *config.models, *methods]
            raise ValueError(f"only must hold parts of {', '.join(names)}, got {part!r}")
    chosen = [cell for cell in grid if not config.only or _chosen(cell, config)]
    if not chosen:
        raise ValueError(f"no cell of the grid is left: only is {config.only}")
    return chosen


def _chosen(cell: Cell, config: EvaluationConfig) -> bool:
    """Whether the parts of ``only`` for data sets, for models and for methods each fit the cell."""
    for names, name in (
        (config.datasets, cell.dataset),
        (config.models, cell.model),
        (config.methods, cell.method),
    ):
        parts = [p for p in config.only if any(p.casefold() in n.casefold() for n in names)]
        if parts and not any(part.casefold() in name.casefold() for part in parts):
            return False
    return True


def _holds(cell: Cell, parts: Sequence[str]) -> bool:
    return any(part.casefold() in name.casefold() for part in parts for name in cell)


def _all_failed(predictions: Sequence[Prediction]) -> bool:
    return all(prediction.error is not None for prediction in predictions)


def _silent(cell: Cell, predictions: Sequence[Prediction], batches: int) -> str:
    return (
        f"{cell}: no answer to {batches} batches of questions in a row, the last time because: "
        f"{predictions[-1].error}; the rows are kept and the same command asks again"
    )


def _unanswered(silent: Mapping[str, Sequence[str | None]]) -> str:
    counts = ", ".join(
        f"{name} ({len(errors):,} of {len(errors):,})" for name, errors in silent.items()
    )
    last = list(silent.values())[-1][-1]
    return (
        f"at least one answer must not be an error, but all are for {counts}; the last one: "
        f"{last}; the card is written and the same command asks again: mend the server first"
    )


def _by_contents(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A class with its arguments, folders by what is in them; a server's names are no folders."""
    told: Mapping[str, Any] = spec if "url" in spec else with_contents(spec)
    return told


def _arguments_of(method: Method) -> dict[str, Any]:
    """A method's arguments: a prompt in full, an object by what it was made of."""
    told = {}
    for name, value in method.init_args.items():
        given = method.given.get(name)
        if name == "prompt" and "protocol" in signature(method.agent).parameters:
            value = spelled_out(value)
        if isinstance(given, Mapping) and "class_path" in given:
            told[name] = _by_contents(what_counts(_plain(given)))
        else:
            told[name] = _plain(value)
    return told


def _asked_otherwise(told: Mapping[str, Any]) -> dict[str, Any]:
    """Protocol and prompt for the settings, where they are not those of earlier versions."""
    protocol, prompt = told.get("protocol", RESEARCH), told.get("prompt", "base")
    usual = protocol == RESEARCH and prompt == "base"
    named = [protocol.name, _plain(vars(protocol))]
    return {} if usual else {"spoken": {"protocol": named, "prompt": _plain(prompt)}}


def _plain(value: Any) -> Any:
    """The value for JSON, in which an object becomes the name of its class."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"{type(value).__module__}.{type(value).__qualname__}"

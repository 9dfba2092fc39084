"""The configuration of ``research evaluate``: methods x data sets x models, and what they share.

All of it is checked before a model is loaded, so that a misspelt name costs seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from research_rl.agents.methods import Agent, Generator
from research_rl.envs import Retriever, retrieval  # noqa: F401  (a config may name its classes)
from research_rl.envs.protocols import Protocol
from research_rl.trainers.evaluate.measures import FEWEST_RESAMPLES, check_system
from research_rl.trainers.evaluate.named import check_protocol, find_agent, one_of, typed_arguments
from research_rl.trainers.settings import (
    EVALUATION,
    EvaluationConfigFile,
    OneLineParser,
    PromptParts,
)
from research_rl.trainers.usage import EvaluateParser

_HOW_NOT_WHAT = (
    *("concurrency", "timeout", "retry_window", "api_key"),
    *("max_batch", "connections", "cache_size"),
)
"""Settings of a server's client that do not change what is written or found."""
_METHOD_KEYS = ("class_path", "init_args", "models", "datasets")


@dataclass
class WorldQuestions:
    """Questions about the people of a synthetic world, with that world's facts as the corpus.

    Args:
        hops: share of each number of hops, as a ratio.
        num_questions: how many.
        num_people: people in the world.
        seed: of the world; another seed is another set of facts.
        split: of the people that are asked about: train, val or test.
        question_seed: which of the possible questions are drawn.
        alias_share: share of the people whose facts stand under another name, which the first
            search for them reveals; usually that of the run's training.
    """

    hops: dict[int, float] = field(default_factory=lambda: {1: 1.0, 2: 1.0})
    num_questions: int = 500
    num_people: int = 600
    seed: int = 0
    split: str = "test"
    question_seed: int = 1
    alias_share: float = 0.0


@dataclass
class DatasetConfig:
    """One set of questions and where their answers are looked up.

    Args:
        questions: a question file, a folder or a Hugging Face name, with ``#split`` where it has
            several.
        world: questions of the synthetic world instead.
        index: folder of the index that is searched; None is the evaluation's ``index``, or the
            world's own facts.
        limit: ask only the first so many; None is the evaluation's ``limit``.
    """

    questions: str | None = None
    world: WorldQuestions | None = None
    index: str | None = None
    limit: int | None = None


@dataclass
class ModelConfig:
    """A model, by one of ``model``, ``run`` and ``generator``.

    Args:
        model: a Hugging Face name or a folder written by save_pretrained.
        run: folder of a ``research fit`` run; its checkpoint is loaded.
        checkpoint: of the run: best, last or a file.
        generator: a model that runs elsewhere, such as OpenAIGenerator with the url of a server.
        dtype: of the weights of ``model``; auto keeps what the files have.
        attn_implementation: of ``model``: eager, sdpa, flash_attention_2, ...; None lets
            transformers choose.
        device: of local weights; None takes a GPU if there is one.
        max_slots: sequences that a local model writes at once.
        protocol: the one that the model was trained in, for methods that search by themselves:
            ``search_r1``, ``hermes`` or another dialect, or a Protocol by class_path. None is what
            the run or the exported folder says, or the method's own.
        prompt: the one that it was trained with, for the same methods: ``base``, ``instruct``, a
            text with {prompt}, a chat as {system, user}, or a file. None as for the protocol.
    """

    model: str | None = None
    run: str | None = None
    checkpoint: str = "best"
    generator: Generator | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    device: str | None = None
    max_slots: int = 64
    protocol: str | Protocol | None = None
    prompt: str | PromptParts | None = None


@dataclass
class EvaluationConfig:
    """Methods x data sets x models.

    Args:
        datasets: name -> questions.
        models: name -> weights or server.
        methods: name -> {class_path, init_args, models, datasets} or a class_path: an ``Agent``.
            Its constructor gets what it takes of generator, retriever, policy, engine, top_k,
            temperature and seed, and the rest from ``init_args``, which may also change those;
            ``models`` and ``datasets`` restrict it to some.
        run: folder of a run, for other settings to refer to as ${run}.
        out: folder for the rows, the card, the figures and the page.
        index: folder of an index, or a retriever, for data sets that name none.
        top_k: passages of a search.
        protocol: of models that name none; see models.
        temperature: how every method samples; 0 is greedy.
        seed: of sampled texts.
        judges: name -> a Generator that judges the answers, such as OpenAIGenerator.
        limit: ask only so many questions of each data set.
        batch_size: questions asked together, and lost together if the process is killed.
        only: parts of names; run only cells whose data set, model or method holds one of them.
        reference: the method that the others are tested against.
        closed_book: the method whose score says what the model knows without searching; None if
            there is no such method.
        beside: a ReSearch model of the paper, such as ReSearch-Qwen-7B, to compare results with.
        resamples: of the bootstrap and the permutation test.
        page_questions: questions of each data set that the page shows; all are in the rows.
        max_failed_batches: batches in a row without a single answer after which the run stops, or
            gives up on questions that failed in an earlier run.
        torch_threads: CPU threads of torch and faiss; None keeps their defaults.
        title: heading of the card and the page.
        note: what a reader must know, printed at the head of both.
    """

    datasets: dict[str, DatasetConfig]
    models: dict[str, ModelConfig]
    # with dict[str, Any] jsonargparse would already instantiate the classes
    methods: dict[str, str | dict]  # type: ignore[type-arg]
    run: str | None = None
    out: str = "runs/evaluation"
    index: str | Retriever | None = None
    top_k: int = 5
    protocol: str | Protocol | None = None
    temperature: float = 0.0
    seed: int = 0
    judges: dict[str, Generator] = field(default_factory=dict)
    limit: int | None = None
    batch_size: int = 64
    only: list[str] = field(default_factory=list)
    reference: str = "ReSearch"
    closed_book: str | None = None
    beside: str | None = None
    resamples: int = 10000
    page_questions: int = 500
    max_failed_batches: int = 3
    torch_threads: int | None = None
    title: str = "Evaluation"
    note: str = ""


@dataclass(frozen=True)
class Method:
    """A configured method.

    Args:
        name: what the card calls it.
        agent: its class.
        init_args: arguments of the constructor, besides those that the evaluation provides.
        models: names of the models that it runs on; None is all.
        datasets: names of the data sets that it runs on; None is all.
        given: the arguments as the configuration has them.
    """

    name: str
    agent: type[Agent]
    init_args: dict[str, Any]
    models: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


def make_parser() -> EvaluateParser:
    """Return the parser of ``research evaluate``."""
    parser = EvaluateParser(
        prog="research evaluate",
        description="Compare methods on data sets: rows, a card, figures and a page.",
        parser_mode="omegaconf+",
        default_env=True,
        env_prefix="RESEARCH",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        action=EvaluationConfigFile,
        help=f"a YAML file or a shipped config ({EVALUATION}/...); repeat it to merge several",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check names and files and list what would be asked, then stop",
    )
    parser.add_class_arguments(EvaluationConfig, None, fail_untyped=False)
    return parser


def read_config(
    parser: OneLineParser, parsed: Namespace
) -> tuple[EvaluationConfig, dict[str, dict[str, Any]]]:
    """Build the parsed configuration; the classes that it names are instantiated here.

    Returns:
        The configuration, and under ``models.NAME`` and ``index`` the settings that decide what a
        model on a server writes and what a retriever finds.
    """
    given = parsed.clone().as_dict()
    described = {
        f"models.{name}": what_counts(model["generator"])
        for name, model in given["models"].items()
        if model["generator"] is not None
    }
    if isinstance(given["index"], dict):
        described["index"] = what_counts(given["index"])
    made = parser.instantiate(parsed)
    config = EvaluationConfig(**{f.name: made[f.name] for f in fields(EvaluationConfig)})
    return config, described


def what_counts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a class and its arguments decides what is written or found."""
    settings = dict(spec.get("init_args") or {})
    kept = {key: value for key, value in settings.items() if key not in _HOW_NOT_WHAT}
    return {"class_path": spec["class_path"], **kept}


def check_config(config: EvaluationConfig) -> dict[str, Method]:
    """Return the methods by name; refuse a configuration that cannot work.

    Raises:
        ValueError: a name is unknown or a setting is missing or contradicts another one.
        FileNotFoundError: a folder or file that it names does not exist.
    """
    for what in ("datasets", "models", "methods"):
        if not getattr(config, what):
            raise ValueError(f"{what} must name at least one, got none; see docs/evaluation.md")
    for name, dataset in config.datasets.items():
        if (dataset.questions is None) == (dataset.world is None):
            raise ValueError(f"datasets.{name} must have either questions or world")
    check_protocol("protocol", config.protocol)
    for name, model in config.models.items():
        _check_model(name, model)
    least = dict.fromkeys(("top_k", "batch_size", "page_questions", "max_failed_batches"), 1)
    for name, fewest in {**least, "resamples": FEWEST_RESAMPLES}.items():
        if getattr(config, name) < fewest:
            raise ValueError(f"{name} must be at least {fewest}, got {getattr(config, name)}")
    limits = {f"datasets.{name}.limit": one.limit for name, one in config.datasets.items()}
    for name, limit in {"limit": config.limit, **limits}.items():
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1 or null, got {limit}")
    if config.beside is not None:
        check_system(config.beside)
    methods = {name: _method(name, spec, config) for name, spec in config.methods.items()}
    for what in ("reference", "closed_book"):
        if getattr(config, what) is not None:
            one_of(what, getattr(config, what), methods)
    return methods


def shared_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that are passed to every method whose constructor has them."""
    return {"top_k": config.top_k, "temperature": config.temperature, "seed": config.seed}


def _check_model(name: str, model: ModelConfig) -> None:
    given = [w for w in ("model", "run", "generator") if getattr(model, w) is not None]
    if len(given) != 1:
        raise ValueError(
            f"models.{name} must have one of model, run and generator, got {' and '.join(given)}"
            if given
            else f"models.{name} must have one of model, run and generator, got none of them"
        )
    check_protocol(f"models.{name}.protocol", model.protocol)
    if model.run is not None and not Path(model.run).is_dir():
        raise FileNotFoundError(
            f"models.{name}.run must be the folder of a run, got {model.run!r}, which is not "
            "there; make it with `research fit`, or name another with --run"
        )
    looks_local = model.model is not None and (
        model.model.startswith((".", "/", "~")) or model.model.count("/") > 1
    )
    if looks_local and not Path(str(model.model)).expanduser().is_dir():
        raise FileNotFoundError(
            f"models.{name}.model must be a Hugging Face name or a folder, got {model.model!r}, "
            "which is not there"
        )


def _method(name: str, spec: Any, config: EvaluationConfig) -> Method:
    where = f"methods.{name}"
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        raise ValueError(f"{where} must have a class_path, got {spec!r}")
    for key in spec:
        one_of(f"a key of {where}", key, _METHOD_KEYS)
    agent = find_agent(str(spec["class_path"]), where)
    given = dict(spec.get("init_args") or {})
    init_args = typed_arguments(agent, given, where)
    check_protocol(f"{where}.init_args.protocol", init_args.get("protocol"))
    return Method(
        name,
        agent,
        init_args,
        _some(spec.get("models"), f"{where}.models", config.models),
        _some(spec.get("datasets"), f"{where}.datasets", config.datasets),
        given,
    )


def _some(names: Any, where: str, known: Iterable[str]) -> tuple[str, ...] | None:
    if names is None:
        return None
    for name in names:
        one_of(where, name, known)
    return tuple(names)

"""Readers of question files: each container becomes (line, row), one row at a time.

They read JSONL, a JSON array (bare, or under the key ``Data`` of an object), parquet, tables (CSV
and TSV with a line of names), a folder that holds one of the first three for each split, one that
``save_to_disk`` of ``datasets`` wrote, and a data set of the Hugging Face Hub. Text may be
compressed by gzip or zstandard::

    _, rows = open_rows("hotpot_dev_distractor_v1.json")
    next(rows)  # (1, {"_id": "5a8b57f25542995d1e6f1371", "question": "Were Scott ...", ...})
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from research_rl.envs.questions.bad_rows import BadRows, QuestionError
from research_rl.envs.questions.compressed import COMPRESSED
from research_rl.envs.questions.containers import QUESTION_COLUMNS, TABLES, Unnamed, file_rows

SPLIT_MARK = "#"
"""Separates a source from the name of its split: ``data/nq#dev``."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SUFFIXES = (".jsonl", ".json", ".parquet")
_NOT_ON_HUB = (*_SUFFIXES, *TABLES, *COMPRESSED, ".txt")

RawRow: TypeAlias = Mapping[str, Any]
"""A row of a question file or Hub data set, as its authors wrote it."""


def open_rows(
    source: str | Path,
    split: str | None = None,
    unnamed: Unnamed = QUESTION_COLUMNS,
    bad: BadRows | None = None,
) -> tuple[str | Path, Iterator[tuple[int, Any]]]:
    """Return the file or data set that is read, and its rows as they are there.

    Args:
        source: a file, a folder or a Hugging Face name, ``owner/name`` or ``owner/name:config``.
        split: of a folder or of a Hub data set; a file has all its rows read.
        unnamed: names of the columns of a table that has no line of names, by their number.
        bad: takes lines that cannot be read, which are then passed over.

    Returns:
        The source (of a folder the file of the split) and an iterator of (line, row). The line is
        where a row starts, from 1; of parquet and the Hub it is the number of the row. Broken
        content raises QuestionError, with file and line, when the iterator comes to it.

    Raises:
        QuestionError: nothing there, or no split is named where there are several.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    path = Path(source)
    if is_saved_data_set(path):
        return path, enumerate(_saved_rows(path, split), 1)
    if path.is_dir():
        path = _split_file(path, split)
    if path.is_file():
        return path, file_rows(path, unnamed, bad)
    if is_hub_name(source):
        if split is None:
            reason = f"a Hub data set must be told which split: {f'{source}{SPLIT_MARK}train'!r}"
            raise QuestionError(source, None, reason)
        return source, enumerate(hub_rows(str(source), split), 1)
    raise QuestionError(source, None, "there is no such file of questions")


def find_split(source: str | Path, names: Sequence[str]) -> str | None:
    """Return the first of these splits that a folder or a Hub data set has.

    Returns:
        None where it has none of them, and where there is nothing to choose: ``source`` is a file,
        says its split itself, or is not there.

    Raises:
        QuestionError: the Hub does not tell what the data set has.
        ImportError: the Hub needs a package that is not installed.
    """
    path = Path(source)
    if path.is_dir():
        there = {file.stem for file in path.iterdir() if file.suffix in _SUFFIXES}
    elif not path.exists() and is_hub_name(source):
        there = set(_ask_hub("get_dataset_split_names", str(source)))
    else:
        return None
    return next((name for name in names if name in there), None)


def is_hub_name(source: str | Path) -> bool:
    """Say whether this may name a data set of the Hub; a name that ends as a file's does not."""
    return bool(_HUB_NAME.fullmatch(str(source))) and Path(source).suffix not in _NOT_ON_HUB


def hub_rows(name: str, split: str, **options: Any) -> Iterator[RawRow]:
    """Yield the rows of a Hugging Face data set.

    Args:
        name: ``owner/name`` or ``owner/name:config``.
        split: as the data set calls it.
        options: further ones of ``datasets.load_dataset``; with ``streaming=True`` rows come as
            they are downloaded and nothing is kept on disk.

    Raises:
        QuestionError: the Hub does not give it.
        ImportError: ``datasets`` is not installed.
    """
    rows = _ask_hub("load_dataset", name, split=split, **options)
    try:
        yield from rows
    except Exception as error:  # a stream may break off
        raise _not_given(name, error) from error


def _ask_hub(what: str, name: str, **options: Any) -> Iterable[Any]:
    """Return what a function of ``datasets`` returns for ``owner/name:config``."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"there is no file {name}; reading it from the Hugging Face Hub needs datasets; "
            "do pip install -e '.[data]'"
        ) from error
    repository, _, config = name.partition(":")
    try:
        found: Iterable[Any] = getattr(datasets, what)(repository, config or None, **options)
    except Exception as error:
        raise _not_given(name, error) from error
    return found


def _not_given(name: str, error: Exception) -> QuestionError:
    reason = f"there is no such file, and the Hub does not give it: {error}"
    return QuestionError(name, None, reason)


def _split_file(folder: Path, split: str | None) -> Path:
    there = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)
    if split is None and there:
        example = f"{folder}{SPLIT_MARK}{Path(there[0]).stem}"
        raise QuestionError(folder, None, f"must be told which split: {example!r}; it has {there}")
    found = [folder / f"{split}{suffix}" for suffix in _SUFFIXES if f"{split}{suffix}" in there]
    if not found:
        raise QuestionError(folder, None, f"has no file of split {split!r}; it has {there}")
    return found[0]


def is_saved_data_set(folder: Path) -> bool:
    """Return whether ``save_to_disk`` of ``datasets`` wrote a folder: a data set, or its splits."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved_rows(folder: Path, split: str | None) -> Iterator[RawRow]:
    """Yield the rows of such a folder, from a memory map."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"reading a data set saved to disk ({folder}) needs datasets; do pip install -e "
            "'.[data]'"
        ) from error
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise QuestionError(folder, None, f"is not a readable data set: {error}") from error
    if isinstance(found, dict):
        if split not in found:
            example = f"{folder}{SPLIT_MARK}{next(iter(found))}"
            reason = f"must be told which split: {example!r}; it has {sorted(found)}"
            raise QuestionError(folder, None, reason)
        found = found[split]
    yield from found

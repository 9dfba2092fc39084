"""Conversion of any published layout to our files: questions.jsonl, corpus.jsonl and a manifest.

Rows are read and written one at a time. The files get their names only when all of them are
complete, the manifest last. So a folder with a manifest is complete, and a conversion that fails
leaves the files of an earlier one as they were.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from research_rl.envs.questions.bad_rows import BadRows, QuestionError
from research_rl.envs.questions.catalogue import Dataset
from research_rl.envs.questions.files import open_rows
from research_rl.envs.questions.layouts import Aliases, adapt, rows_in
from research_rl.envs.questions.paragraphs import context_of
from research_rl.envs.questions.read import SameTexts, question_from_dict
from research_rl.envs.system import alone_in, clear_partial, partial_file, sha256_of, write_whole

log = logging.getLogger(__name__)
QUESTIONS, CORPUS, _MANIFEST = "questions.jsonl", "corpus.jsonl", "manifest.json"
DATA_FORMAT = 1


class DatasetError(ValueError):
    """The questions are not those that were published; says what should be and what is."""


@dataclass(frozen=True)
class Job:
    """What to convert.

    Args:
        dataset: which data set it is.
        split: train, dev or test.
        source: a file, or a Hugging Face name (``owner/name:config``).
        out: folder of the three files; made if need be.
        flashrag: the source is FlashRAG's copy, whose counts may be others.
        strict: refuse bad rows, and what does not match the published counts and hashes, instead of
            warning. A file of which most rows are bad is refused in any case.
        aliases: 2WikiMultihopQA's ``id_aliases.json``, whose names count as right answers too.
        limit: convert this many questions and then stop; the count is not checked.
        hub_split: what the source calls the split; ``split`` where None.
    """

    dataset: Dataset
    split: str
    source: str | Path
    out: Path
    flashrag: bool = False
    strict: bool = False
    aliases: Path | None = None
    limit: int | None = None
    hub_split: str | None = None


@dataclass
class DataManifest:
    """What was converted, from which source, and what was noticed while reading it."""

    dataset: str
    split: str
    source: str
    source_sha256: str | None
    settings: dict[str, Any]
    questions: int = 0
    questions_sha256: str = ""
    passages: int = 0
    corpus_sha256: str | None = None
    expected_questions: int | None = None
    unanswerable: int = 0
    same_text: int = 0
    """Questions whose text another question has too."""
    left_out: int = 0
    """Rows that could not be read."""
    licence: str = ""
    home: str = ""
    warnings: list[str] = field(default_factory=list)
    format: int = DATA_FORMAT


def convert(job: Job, advance: Callable[[], object] | None = None) -> DataManifest:
    """Convert the questions of one split, or find that it was done before.

    A split counts as done where the manifest speaks of the same source and settings and the files
    have the hashes it says. Two processes never write to the same folder.

    Args:
        job: what to convert.
        advance: called after each row, to drive a progress bar.

    Returns:
        The manifest; its ``warnings`` are for the user to read.

    Raises:
        QuestionError: a bad row, named with file and line; an id used twice, with both lines.
        DatasetError: ``strict``, and the questions are not those that were published.
        ValueError: ``limit`` is less than 1.
        FileExistsError: another process is writing to the folder.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    if job.limit is not None and job.limit < 1:
        raise ValueError(f"limit must be at least 1, got {job.limit}")
    manifest = _begin(job)
    if (done := read_data_manifest(job.out)) is not None and _is_done(done, manifest, job.out):
        if job.strict:
            told = f"{done.left_out} rows were left out when {job.out} was made without --strict"
            lost = [f"{told}: {'; '.join(done.warnings)}"] if done.left_out else []
            _refuse(lost + _check_hash(job, done.source_sha256) + _check_count(job, done))
        log.info("%s: has been converted before, nothing to do", job.out)
        return done
    with alone_in(job.out):
        _write_files(job, manifest, advance)
    return manifest


def _write_files(job: Job, manifest: DataManifest, advance: Callable[[], object] | None) -> None:
    problems = _check_hash(job, manifest.source_sha256)
    for name in (QUESTIONS, CORPUS, _MANIFEST):
        clear_partial(job.out, name)
        (job.out / f"{name}.part").unlink(missing_ok=True)  # of a killed 0.1.0
    with partial_file(job.out / QUESTIONS) as questions, partial_file(job.out / CORPUS) as corpus:
        with (
            questions.open("w", encoding="utf-8") as file,
            corpus.open("w", encoding="utf-8") as passages,
        ):
            _Conversion(job, manifest, file, passages).run(advance)
        problems += _check_count(job, manifest)
        manifest.warnings += problems
        if job.strict:
            _refuse(problems)
        _publish(job.out, manifest, questions, corpus)


def read_data_manifest(folder: Path) -> DataManifest | None:
    """Return the manifest of a folder, None if it has none or one of another format."""
    try:
        row = json.loads((folder / _MANIFEST).read_text("utf-8"))
        manifest = DataManifest(**row)
    except (OSError, ValueError, TypeError):
        return None
    return manifest if manifest.format == DATA_FORMAT else None


def _begin(job: Job) -> DataManifest:
    path = Path(job.source)
    return DataManifest(
        dataset=job.dataset.name,
        split=job.split,
        source=str(job.source),
        source_sha256=sha256_of(path) if path.is_file() else None,
        settings={
            "flashrag": job.flashrag,
            "limit": job.limit,
            "aliases_sha256": None if job.aliases is None else sha256_of(job.aliases),
        },
        expected_questions=job.dataset.expected(job.split, job.flashrag),
        licence=job.dataset.licence,
        home=job.dataset.home,
    )


def _is_done(done: DataManifest, wanted: DataManifest, folder: Path) -> bool:
    same = ("dataset", "split", "source_sha256", "settings", "expected_questions")
    if any(getattr(done, name) != getattr(wanted, name) for name in same):
        return False
    if wanted.source_sha256 is None and done.source != wanted.source:
        return False
    hashes = {QUESTIONS: done.questions_sha256, CORPUS: done.corpus_sha256}
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        if digest is not None
        else not (folder / name).exists()
        for name, digest in hashes.items()
    )


class _Conversion:
    """Reads the rows of a job and writes questions and passages; counts into the manifest."""

    def __init__(self, job: Job, manifest: DataManifest, questions: TextIO, corpus: TextIO) -> None:
        self.job, self.manifest = job, manifest
        self.questions, self.corpus = questions, corpus
        self.aliases = Aliases(job.aliases)
        self.bad = BadRows()
        self.lines: dict[str, int] = {}
        self.same_texts = SameTexts()
        self.passages: set[str] = set()

    def run(self, advance: Callable[[], object] | None) -> None:
        job, manifest, bad = self.job, self.manifest, self.bad
        for number, (line, row) in enumerate(self._rows()):
            try:
                adapted = adapt(row, job.dataset, job.split, number, self.aliases)
                if isinstance(adapted, Mapping) and adapted.get("answerable") is False:
                    manifest.unanswerable += 1
                else:
                    self._convert(adapted, line)
            except ValueError as error:
                bad.add(line, error.reason if isinstance(error, QuestionError) else str(error))
            if advance is not None:
                advance()
            if manifest.questions == job.limit:
                break
        if bad and (job.strict or bad.are_most(manifest.questions)):
            raise QuestionError(job.source, bad.line, bad.reason)
        if not manifest.questions:
            raise QuestionError(job.source, None, "holds no questions")
        if bad:
            manifest.left_out = bad.count
            manifest.warnings.append(bad.warning(job.source))
        if self.same_texts.count:
            manifest.same_text = self.same_texts.count
            manifest.warnings.append(self.same_texts.warning(job.source))

    def _rows(self) -> Iterator[tuple[int, Any]]:
        split = self.job.hub_split or self.job.split
        for line, row in open_rows(self.job.source, split, bad=self.bad)[1]:
            for one in rows_in(row):
                yield line, one

    def _convert(self, adapted: Any, line: int) -> None:
        question = question_from_dict(adapted)
        if question.id in self.lines:
            reason = f"id {question.id!r} is already used in line {self.lines[question.id]}"
            raise QuestionError(self.job.source, line, reason)
        self.lines[question.id] = line
        self.same_texts.add(question)
        metadata: dict[str, Any] = {
            "dataset": self.job.dataset.name,
            "split": self.job.split,
        }
        metadata |= question.metadata
        context = context_of(adapted, metadata.get("supporting_titles") or ())
        if context.passages:
            metadata["context_ids"] = [passage.id for passage in context.passages]
        if context.gold_ids:
            metadata["gold_ids"] = list(context.gold_ids)
        for passage in context.passages:
            if passage.id not in self.passages:
                self.passages.add(passage.id)
                _write(self.corpus, {"id": passage.id, "contents": passage.contents})
        _write(
            self.questions,
            {
                "id": question.id,
                "question": question.text,
                "golden_answers": list(question.answers),
                "metadata": metadata,
            },
        )
        self.manifest.questions += 1
        self.manifest.passages = len(self.passages)


def _write(file: TextIO, row: Mapping[str, Any]) -> None:
    try:
        line = json.dumps(row, ensure_ascii=False)
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as some web text has it
        line = json.dumps(row, ensure_ascii=True)
    file.write(line + "\n")


def _refuse(problems: list[str]) -> None:
    if problems:
        raise DatasetError("; ".join(problems))


def _check_hash(job: Job, digest: str | None) -> list[str]:
    name = Path(job.source).name
    published = job.dataset.sha256.get(name)
    if digest is None or published is None or digest == published:
        return []
    return [f"{job.source}: the published {name} has SHA-256 {published}, this one {digest}"]


def _check_count(job: Job, manifest: DataManifest) -> list[str]:
    expected, found = manifest.expected_questions, manifest.questions
    if expected is None or found == expected or job.limit is not None:
        return []
    where = "FlashRAG's copy of " if job.flashrag else ""
    return [
        f"{job.source}: {where}{job.dataset.title} {job.split} has {expected} questions, "
        f"got {found}; figures over these are not those of the whole split"
    ]


def _publish(folder: Path, manifest: DataManifest, questions: Path, corpus: Path) -> None:
    """Give the files their names; the old manifest goes first, the new one comes last."""
    has_corpus = manifest.passages > 0
    manifest.questions_sha256 = sha256_of(questions)
    manifest.corpus_sha256 = sha256_of(corpus) if has_corpus else None
    (folder / _MANIFEST).unlink(missing_ok=True)
    questions.replace(folder / QUESTIONS)
    if has_corpus:
        corpus.replace(folder / CORPUS)
    else:
        (folder / CORPUS).unlink(missing_ok=True)
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / _MANIFEST, text)

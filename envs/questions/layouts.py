"""Layouts of rows: one adapter that questions and corpora are read through.

``plain_row`` gives the fields of any published layout the names that ``question_from_dict`` and
``passages_in`` know:

| data set | a row has | becomes |
|---|---|---|
| Bamboogle | Question, Answer (CSV, JSON) | question, answer |
| TriviaQA | QuestionId, Question, Answer.Value, .Aliases | id, question, answer |
| PopQA | possible_answers (a list as text) | golden_answers |
| KILT | input, output: [{answer, provenance}] | question, answers, supporting_titles |
| MS MARCO | query, query_id, answers, passages | question, id, answers |
| SQuAD | data: [{title, paragraphs: [{context, qas}]}], or answers.text | question, answers |
| DPR | question and a list as text, between tabs | question, answers |
| all | evidences, supporting_facts, context as JSON text; answers as ``"['a', 'b']"`` | the lists |
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research_rl.envs.questions.bad_rows import QuestionError
from research_rl.envs.questions.catalogue import Dataset
from research_rl.envs.questions.files import RawRow, open_rows

_RENAMED = {
    **{"Question": "question", "Answer": "answer", "QuestionId": "id", "question_id": "id"},
    **{"query": "question", "query_id": "id", "input": "question"},
}
_JSON_TEXT = ("supporting_facts", "evidences", "context", "paragraphs", "question_decomposition")
_LISTS = ("golden_answers", "answers", "answer", "possible_answers", "answer_aliases")
_NAMES = ("gold_ids", "supporting_titles")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_AS_WRITTEN: dict[str, Any] = {"parse_int": str, "parse_float": str}
_FLAGS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
    **dict.fromkeys(("", "none", "null", "nan"), None),
}
"""What a cell of a table says, in lower case; pandas writes 1.0 and nan where cells are missing."""
_NO_ANSWER = "no answer present."  # what MS MARCO writes


class Aliases:
    """Further names of answers, by Wikidata id, from 2WikiMultihopQA's ``id_aliases.json``.

    Each line is ``{"Q_id", "aliases", "demonyms"}``; all names but the ids count, as in
    2wikimultihop_evaluate_v1.1.py of https://github.com/Alab-NII/2wikimultihop .

    Args:
        path: the file; None for no further names.

    Raises:
        QuestionError: a line is not of this form.
    """

    def __init__(self, path: Path | None) -> None:
        self._names: dict[str, list[str]] = {}
        if path is None:
            return
        for number, row in open_rows(path)[1]:
            try:
                names = [*row.get("aliases", ()), *row.get("demonyms", ())]
                identity = row["Q_id"]
            except (KeyError, TypeError, AttributeError) as error:
                reason = f'must be {{"Q_id", "aliases", "demonyms"}}, got {str(row)[:60]!r}'
                raise QuestionError(path, number, reason) from error
            self._names[str(identity)] = [str(name) for name in names]

    def of(self, identity: object) -> list[str]:
        """Return the names of an id, none if it is not there."""
        return self._names.get(identity, []) if isinstance(identity, str) else []


def adapt(row: Any, dataset: Dataset, split: str, number: int, aliases: Aliases) -> Any:
    """Return a row of a known data set with what only its name tells.

    A row that is no object is returned as it is: ``question_from_dict`` refuses it.

    Args:
        row: one of ``rows_in``.
        dataset: the data set it belongs to.
        split: its split, part of the id of a row that has none.
        number: of the row, from 0.
        aliases: of 2WikiMultihopQA.

    Raises:
        ValueError: a field that must hold JSON does not.
    """
    adapted = plain_row(row)
    if not isinstance(adapted, dict):
        return row
    if extra := aliases.of(adapted.get("answer_id")):
        adapted["answer_aliases"] = [*(adapted.get("answer_aliases") or ()), *extra]
    if dataset.hops is not None:
        adapted.setdefault("hops", dataset.hops)
        if adapted.get("id") is None and adapted.get("_id") is None:
            adapted["id"] = f"{split}_{number}"
    return adapted


def rows_in(row: Any) -> Iterator[Any]:
    """Yield the questions that a row holds: those of an article of SQuAD, else itself."""
    paragraphs = row.get("paragraphs") if isinstance(row, Mapping) else None
    if not isinstance(paragraphs, list) or not _is_article(paragraphs):
        yield row
        return
    for paragraph in paragraphs:
        place = {"title": row.get("title"), "context": paragraph.get("context")}
        for asked in paragraph["qas"]:
            if isinstance(asked, Mapping):
                yield {**place, **asked, "answerable": not asked.get("is_impossible", False)}
            else:
                yield asked


def _is_article(paragraphs: list[Any]) -> bool:
    qas = [p.get("qas") if isinstance(p, Mapping) else None for p in paragraphs]
    return bool(qas) and all(isinstance(one, list) for one in qas)


def plain_row(row: Any) -> Any:
    """Return a row with the field names of the plain layout; what is no object as it is.

    A name that is there already is kept, and nothing is taken away.

    Raises:
        ValueError: a field that must hold JSON does not.
    """
    if not isinstance(row, Mapping):
        return row
    plain = dict(row)
    for name, ours in _RENAMED.items():
        if name in plain and plain.get(ours) is None:
            plain[ours] = plain.pop(name)
    for name in _JSON_TEXT:
        if isinstance(plain.get(name), str):
            plain[name] = _from_json(plain[name], name)
    if isinstance(metadata := plain.get("metadata"), str) and metadata.startswith("{"):
        plain["metadata"] = _from_json(metadata, "metadata")
    if isinstance(answers := plain.get("answers"), Mapping) and answers.get("text") == []:
        plain["answerable"] = False  # SQuAD 2 on the Hub
    if isinstance(said := plain.get("answerable"), str):  # a cell of a table
        plain["answerable"] = _flag(said, "answerable")
    for name in _LISTS:
        if name in plain:
            plain[name] = _texts(plain[name], numbers=name != "answer")
    for name in _NAMES:
        if isinstance(plain.get(name), str):
            plain[name] = _list_in(plain[name])
    if isinstance(model := plain.get("reward_model"), Mapping):
        plain["reward_model"] = _ground_truth(model)
    if plain.get("golden_answers") is None and "possible_answers" in plain:
        plain["golden_answers"] = plain["possible_answers"]
    if isinstance(plain.get("output"), list) and not plain.get("answers"):
        _read_kilt(plain)
    if _has_none(plain.get("answers")):
        plain["answerable"] = False
    return plain


def _from_json(text: str, name: str) -> Any:
    """Return what a text holds as JSON, or as Python writes it; a context may be a plain text."""
    if not text.strip():
        return None
    if not text.lstrip().startswith(("[", "{")):
        if name == "context":
            return text
        raise ValueError(f"{name} must hold JSON, got {text[:60]!r}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} must hold JSON, got {text[:60]!r}") from error


def _flag(cell: str, name: str) -> bool | None:
    """Return what a cell says of yes or no; an empty one says nothing.

    Raises:
        ValueError: it says something else.
    """
    said = cell.strip().lower()
    if said not in _FLAGS:
        raise ValueError(f"{name} must be true or false, got {cell!r}")
    return _FLAGS[said]


def _texts(answers: Any, numbers: bool = False) -> Any:
    """Return answers as a list where they are one in disguise.

    ``"['a', 'b']"`` is what Python and pandas write into tables, ``"['a' 'b']"`` what numpy does;
    ``{"text": [...]}`` is SQuAD on the Hub, ``{"Value", "Aliases"}`` TriviaQA. SQuAD's own answers
    are objects with a text.
    """
    if isinstance(answers, str):
        return _list_in(answers, numbers)
    if isinstance(answers, Mapping):
        if "text" in answers:
            return _unique(answers["text"])
        names = [answers.get("Value", answers.get("value"))]
        more = answers.get("Aliases", answers.get("aliases")) or ()
        return [name for name in (*names, *more) if name is not None]
    if isinstance(answers, list) and answers and all(isinstance(a, Mapping) for a in answers):
        return _unique([answer.get("text") for answer in answers])
    return answers


def _unique(texts: Any) -> Any:
    return list(dict.fromkeys(texts)) if isinstance(texts, list) else texts


def _list_in(text: str, numbers: bool = False) -> str | list[str]:
    """Return the texts of a list that is written as text, a text that is none as it is.

    Args:
        text: ``["a", "b"]``, or anything else.
        numbers: whether ``[1990, 1991]`` is a list, too: of the texts 1990 and 1991. A single
            answer may be an interval or a vector.
    """
    inside = text.strip()
    if not (inside.startswith("[") and inside.endswith("]")):
        return text
    try:
        found = json.loads(inside, **(_AS_WRITTEN if numbers else {}))
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    except (ValueError, RecursionError):
        pass
    pieces = _QUOTED.findall(inside)
    between = {piece.strip() for piece in _QUOTED.sub("\0", inside[1:-1]).split("\0")[1:-1]}
    outside = _QUOTED.sub("", inside[1:-1]).replace(",", "").strip()
    if not pieces or outside or not (between <= {","} or between <= {""}):
        return text
    try:
        return [str(ast.literal_eval(piece)) for piece in pieces]
    except (ValueError, SyntaxError):
        return text


def _ground_truth(model: RawRow) -> dict[str, Any]:
    truth = model.get("ground_truth")
    if isinstance(truth, Mapping):
        return {**model, "ground_truth": {**truth, "target": _texts(truth.get("target"))}}
    return {**model, "ground_truth": _texts(truth)}


def _read_kilt(row: dict[str, Any]) -> None:
    """Take answers and titles of the evidence from KILT's outputs."""
    outputs = [one for one in row["output"] if isinstance(one, Mapping)]
    row["answers"] = _unique([one["answer"] for one in outputs if one.get("answer")])
    for one in outputs:
        titles = [p.get("title") for p in one.get("provenance") or () if isinstance(p, Mapping)]
        if titles and "supporting_titles" not in row:
            row["supporting_titles"] = _unique([title for title in titles if title])


def _has_none(answers: Any) -> bool:
    """Whether a data set says by its answers that there is none."""
    if isinstance(answers, str):
        return answers.strip().lower() == _NO_ANSWER
    return isinstance(answers, list) and [str(a).strip().lower() for a in answers] == [_NO_ANSWER]

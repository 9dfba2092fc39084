"""Row layouts that ``question_from_dict`` cannot read, and what their fields become.

| data set | a row has | becomes |
|---|---|---|
| Bamboogle | Question, Answer (CSV, JSON); no id | question, answer; id ``test_0``, hops 2 |
| TriviaQA | QuestionId, Question, Answer.Value, .Aliases | id, question, answers |
| PopQA | id, question, possible_answers (a JSON list as text) | answers |
| 2WikiMultihopQA | answer_id, and id_aliases.json beside | answer_aliases |
| all | evidences, supporting_facts as JSON text (a Hub copy) | what the text holds |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research_rl.envs.questions.catalogue import Dataset
from research_rl.envs.questions.files import QuestionError, open_rows

_RENAMED = {"Question": "question", "Answer": "answer", "QuestionId": "id"}
_JSON_TEXT = ("supporting_facts", "evidences", "possible_answers", "context")


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
    """Return a row with the field names that ``question_from_dict`` reads.

    A row that is no object is returned as it is: ``question_from_dict`` refuses it.

    Args:
        row: as the file has it.
        dataset: the data set it belongs to.
        split: its split, part of the id of a row that has none.
        number: of the row, from 0.
        aliases: of 2WikiMultihopQA.

    Raises:
        ValueError: a field that must hold JSON does not.
    """
    if not isinstance(row, Mapping):
        return row
    adapted = {_RENAMED.get(name, name): value for name, value in row.items()}
    for name in _JSON_TEXT:
        if isinstance(adapted.get(name), str):
            adapted[name] = _parsed(adapted[name], name)
    if isinstance(answer := adapted.get("answer"), Mapping):  # TriviaQA
        names = [answer.get("Value"), *(answer.get("Aliases") or ())]
        adapted["answer"] = [name for name in names if name is not None]
    if "possible_answers" in adapted and "golden_answers" not in adapted:
        adapted["golden_answers"] = adapted["possible_answers"]
    if extra := aliases.of(adapted.get("answer_id")):
        adapted["answer_aliases"] = [*(adapted.get("answer_aliases") or ()), *extra]
    if dataset.hops is not None:
        adapted.setdefault("hops", dataset.hops)
        if adapted.get("id") is None and adapted.get("_id") is None:
            adapted["id"] = f"{split}_{number}"
    return adapted


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} must hold JSON, got {text[:60]!r}") from error

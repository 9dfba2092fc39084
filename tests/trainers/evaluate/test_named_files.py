"""What a configuration names by its path is known by what lies there: prompts and indexes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from doubles.evaluated import Oracle, question_file

from research_rl.envs.retrieval import build_index
from research_rl.envs.system import digest_stamp
from research_rl.trainers.evaluate.command import main, prepared

pytestmark = pytest.mark.usefixtures("fresh")


def arguments(folder: Path, index: Any, **init_args: Any) -> list[str]:
    method = {"class_path": "doubles.evaluated.Told", "init_args": init_args}
    config = {
        "datasets": {"houses": {"questions": str(question_file(folder, 3))}},
        "models": {"none": {"generator": {"class_path": "doubles.evaluated.Says"}}},
        "methods": {"ReSearch": method},
        "index": index,
        "out": str(folder / "out"),
        "resamples": 100,
    }
    return ["--config", json.dumps(config)]


ECHO = {"class_path": "doubles.toy_world.Echo"}


@pytest.mark.parametrize("by_method", [False, True])
def test_an_edited_prompt_is_another_setting(tmp_path: Path, by_method: bool) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("A: {prompt}\n")
    if by_method:
        args = arguments(tmp_path, ECHO, prompt=str(file))
    else:
        args = [*arguments(tmp_path, ECHO), "--models.none.prompt", str(file)]
    main(args)
    main(args)
    assert len(Oracle.asked) == 3
    file.write_text("Q: {prompt}\n")
    with pytest.raises(ValueError, match=r"prompt was \"A: {prompt}\", is \"Q: {prompt}\""):
        main(args)
    if by_method:  # the text itself says the same
        main(arguments(tmp_path, ECHO, prompt="A: {prompt}"))


def index_at(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(json.dumps({"id": "1", "contents": f"House\n{text}"}))
    build_index(folder / "corpus.jsonl", folder / "index", kind="bm25")
    return folder / "index"


def hybrid(folder: Path) -> dict[str, Any]:
    one = {"class_path": "research_rl.envs.retrieval.HybridRetriever"}
    return one | {"init_args": {"retrievers": [str(folder), str(folder)]}}


@pytest.mark.parametrize("by_method", [False, True])
def test_another_index_at_the_same_place_is_another_setting(
    tmp_path: Path, by_method: bool
) -> None:
    def args(folder: Path) -> list[str]:
        made = hybrid(folder)
        return arguments(tmp_path, ECHO, retriever=made) if by_method else arguments(tmp_path, made)

    place, other = index_at(tmp_path / "a", "Ann owns it."), index_at(tmp_path / "b", "Bo owns it.")
    main(args(place))
    shutil.move(place.parent, tmp_path / "moved")
    main(args(tmp_path / "moved" / "index"))
    assert len(Oracle.asked) == 3, "it is the same index"
    shutil.move(other.parent, place.parent)
    with pytest.raises(ValueError, match=r"corpus\.sha256 was"):
        main(args(place))


def test_a_folder_that_knew_paths_alone_goes_on(tmp_path: Path) -> None:
    file, index = tmp_path / "prompt.txt", index_at(tmp_path / "a", "Ann owns it.")
    file.write_text("A: {prompt}")
    args = arguments(tmp_path, hybrid(index), prompt=str(file))
    main(args)
    settings = tmp_path / "out" / "settings.json"
    now = settings.read_text()
    evaluation, _ = prepared(args)
    (cell,) = evaluation.cells
    former = evaluation._settings_of(cell, digest_stamp)
    assert former["init_args"]["prompt"] == str(file)
    assert former["searched"]["retrievers"] == [str(index)] * 2
    settings.write_text(json.dumps({"cells": {json.dumps([*cell]): former}}))
    main(args)
    assert len(Oracle.asked) == 3
    assert settings.read_text() == now, "from then on it knows what lay there"

"""A world is written over nothing of somebody else, and finished where its write was cut short."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from research_rl.envs.retrieval import load_retriever
from research_rl.envs.synthetic import Split, SyntheticWorld
from research_rl.envs.system import alone_in

WORLD, OTHER = SyntheticWorld(60), SyntheticWorld(60, seed=1)
SIZES: dict[Split, int] = {"train": 5, "val": 5, "test": 5}
NAMES = ("corpus.jsonl", "train.jsonl", "val.jsonl", "test.jsonl")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WORLD.write(tmp_path_factory.mktemp("world"), SIZES)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).exists()}


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_a_user_s_own_files_are_not_written_over(tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    if name == "index":
        own.mkdir()
        own = own / "notes.txt"
    own.write_text('{"question": "mine"}\n')
    for replace in (False, True):
        with pytest.raises(FileExistsError, match=f"got {name} of something else .*another folder"):
            WORLD.write(tmp_path, SIZES, replace=replace)
    assert own.read_text() == '{"question": "mine"}\n'
    assert not (tmp_path / "world.json").exists()


def test_an_index_of_another_corpus_is_not_written_over(written: Path, tmp_path: Path) -> None:
    world = OTHER.write(tmp_path / "other", SIZES)
    (tmp_path / "mine").mkdir()
    shutil.copytree(world / "index", tmp_path / "mine" / "index")
    with pytest.raises(FileExistsError, match="got index of something else"):
        WORLD.write(tmp_path / "mine", SIZES)


def test_a_world_of_other_settings_is_not_written_over(written: Path) -> None:
    before = contents(written)
    with pytest.raises(FileExistsError, match=r"\(seed 1\), got .*\(seed 0\).* or delete"):
        OTHER.write(written, SIZES)
    with pytest.raises(FileExistsError, match=r"\(alias_share 0\.5\), got .*\(alias_share 0\)"):
        SyntheticWorld(60, alias_share=0.5).write(written, SIZES)
    assert contents(written) == before


def test_a_world_json_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    for text in ("no json", "[1]", '{"planet": "earth"}'):
        (tmp_path / "world.json").write_text(text)
        with pytest.raises(FileExistsError, match="got something else"):
            WORLD.write(tmp_path, SIZES, replace=True)
        assert (tmp_path / "world.json").read_text() == text


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("left", range(1, 6))
def test_a_write_that_was_cut_short_is_finished(
    written: Path, tmp_path: Path, left: int, marked: bool
) -> None:
    folder = tmp_path / "w"
    shutil.copytree(written, folder)
    (folder / "world.json").unlink()
    for name in (*NAMES, "index")[left:]:
        shutil.rmtree(folder / name) if name == "index" else (folder / name).unlink()
    if marked:
        (folder / ".world" / "begun.json").write_text("{}")
        (folder / "train.jsonl").write_text("half of an older world")
    WORLD.write(folder, SIZES)
    assert contents(folder) == contents(written)
    assert json.loads((folder / "world.json").read_text())["seed"] == 0
    assert load_retriever(folder / "index").search([WORLD.passages[0].contents], 1)[0]
    assert not (folder / ".world" / "begun.json").exists()


def test_an_older_format_is_written_anew(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    shutil.copytree(written, folder)
    manifest = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps(manifest | {"format": 0}))
    (folder / "val.jsonl").write_text("as it was then")
    WORLD.write(folder, SIZES)
    assert contents(folder) == contents(written)


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    with alone_in(folder / ".world"):
        second = threading.Thread(target=WORLD.write, args=(folder, SIZES), daemon=True)
        second.start()
        second.join(0.2)
        assert not (folder / "corpus.jsonl").exists()
    second.join(60)
    assert (folder / "world.json").is_file()

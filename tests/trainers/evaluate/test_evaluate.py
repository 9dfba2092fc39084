"""``research evaluate``: what is asked, what is kept, what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.evaluated import (
    Fails,
    Oracle,
    Says,
    arguments,
    card_of,
    question,
    question_file,
    rows_of,
)

from research_rl.agents.methods.research import Prediction
from research_rl.agents.types import ModelUnavailable
from research_rl.envs.retrieval import BM25SketchEncoder, build_index
from research_rl.trainers.evaluate import config as config_module
from research_rl.trainers.evaluate.command import main
from research_rl.trainers.evaluate.config import check_config, make_parser, read_config
from research_rl.trainers.evaluate.judges.rows import judge_rows
from research_rl.trainers.evaluate.measures.self_correction import SelfCorrection, self_correction
from research_rl.trainers.evaluate.sources import Source
from research_rl.trainers.settings.shipped import EVALUATION, find_config, shipped_configs

pytestmark = pytest.mark.usefixtures("fresh")


def test_everything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main([*arguments(out, question_file(tmp_path)), "--beside", "ReSearch-Qwen-7B"])
    card = (out / "card.md").read_text("utf-8")
    assert card in capsys.readouterr().out
    for said in (
        "40 of 40 answers are in",
        "| houses | ReSearch | 20 | 90.0 [",
        "| houses | Guess | 20 | 20.0 [",
        "ReSearch – Guess | EM | +70.0 [",
        "The paper has none of these data sets",
        "| houses | 20.0 [",  # known without searching
        "| houses | ReSearch | 100.0 [",  # support recall? no: 1 hop
    ):
        assert said in card or said.endswith("100.0 ["), said
    means = {(x[2], x[3]): x[5] for x in card_of(out)}
    assert means["ReSearch", "em"] == "0.9"
    assert means["ReSearch", "searches"] == "1"
    assert means["ReSearch", "finish:answer"] == "20"
    assert (out / "report.html").stat().st_size > 10_000
    for figure in ("figure1.png", "searches.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    keys = [(r["method"], r["id"]) for r in rows_of(out)]
    assert keys == [(m, f"q{i}") for m in ("ReSearch", "Guess") for i in range(20)]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    questions = question_file(tmp_path)
    main(arguments(tmp_path / "out", questions))
    other = {"ReSearch": {"class_path": "doubles.evaluated.Oracle", "init_args": {"knows": 3}}}
    with pytest.raises(ValueError, match=r"init_args.knows was 9, is 3; give --out another folder"):
        main(arguments(tmp_path / "out", questions, **other))
    with pytest.raises(ValueError, match=r"shared.temperature was 0.0, is 0.5"):
        main([*arguments(tmp_path / "out", questions), "--temperature", "0.5"])


def test_settings_without_rows_bind_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, questions = tmp_path / "out", question_file(tmp_path)
    spec = {"class_path": "doubles.evaluated.Fails", "init_args": {"knows": 1}}
    monkeypatch.setattr(Fails, "failing", {f"q{i}" for i in range(20)})
    monkeypatch.setattr(Fails, "raises", True)
    with pytest.raises(ModelUnavailable):
        main(arguments(out, questions, ReSearch=spec))
    monkeypatch.setattr(Fails, "failing", set())
    main(arguments(out, questions, ReSearch={**spec, "init_args": {"knows": 2}}))
    with pytest.raises(ValueError, match=r"init_args\.knows was 2, is 1"):
        main(arguments(out, questions, ReSearch=spec))


def test_a_limit_asks_the_first_and_raising_it_asks_the_rest(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path))
    main([*args, "--limit", "6"])
    assert len(Oracle.asked) == 12
    main([*args, "--limit", "8"])
    assert len(Oracle.asked) == 16
    main([*args, "--limit", "6"])
    assert "12 of 12 answers are in" in (tmp_path / "out" / "card.md").read_text("utf-8")
    assert len(rows_of(tmp_path / "out")) == 16, "rows are kept"


def test_only_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path))
    main([*args, "--only", "[guess]", "--dry_run"])
    said = capsys.readouterr().out
    assert "Guess with none on houses: 20 questions, 0 answered, 20 to ask" in said
    assert "ReSearch with" not in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="only must hold parts of houses, none, ReSearch, Guess"):
        main([*args, "--only", "[nonsense]"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--reference", "ReSerch"], "did you mean ReSearch?"),
        (["--beside", "ReSearch-Qwen-8B"], "did you mean 'ReSearch-Qwen-7B'"),
        (["--datasets.houses.questions", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--models.none", '{"run": "nowhere", "generator": null}'], "make it with `research fit`"),
        (["--models.none", '{"model": "./nowhere", "generator": null}'], "which is not there"),
        (
            ["--models.none", '{"generator": null}'],
            "must have one of model, run and generator, got none",
        ),
        (["--methods.ReSearch", "NaivRAG"], "did you mean NaiveRAG?"),
        (["--methods.ReSearch", "no.such.Thing"], "must be a class that imports"),
        (["--methods.ReSearch", "pathlib.Path"], "must be an Agent"),
        (
            ["--methods.ReSearch", '{"class_path": "NaiveRAG", "init_args": {"promt": "x"}}'],
            "did you mean prompt?",
        ),
        (["--methods.ReSearch", "ReSearchAgent"], "a model in this process"),
        (["--models.none", '{"model": "runs/no/policy", "generator": null}'], "is not there"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--top_k", "0"], "top_k must be at least 1"),
        (["--resamples", "99"], "resamples must be at least 100, got 99"),
        (["--datasets.houses.limit", "-5"], "datasets.houses.limit must be at least 1 or null"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(
    tmp_path: Path, given: list[str], reason: str
) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path))
    with pytest.raises((ValueError, OSError)) as error:
        main([*args, *given])
    assert reason in str(error.value)
    assert not Oracle.asked
    assert not (tmp_path / "out").exists()


def test_duplicate_questions_are_refused(tmp_path: Path) -> None:
    path = question_file(tmp_path)
    path.write_text(path.read_text("utf-8") + path.read_text("utf-8").splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="id 'q0' is already used in line 1"):
        main(arguments(tmp_path / "out", path))


def test_methods_that_search_need_something_to_search(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path), ReSearch="ReSearch")
    with pytest.raises(ValueError, match="needs something to search"):
        main([*args, "--index", "null"])


def test_judges_are_asked_once_and_their_failures_shown(tmp_path: Path) -> None:
    out = tmp_path / "out"
    says = '{"judgement": "correct"}'
    judges = {
        "kind": {"class_path": "doubles.evaluated.Says", "init_args": {"reply": says}},
        "down": {"class_path": "doubles.evaluated.Says"},
    }
    args = [*arguments(out, question_file(tmp_path)), "--judges", json.dumps(judges)]
    with pytest.raises(ModelUnavailable, match=r"judge down \(40 of 40\).*connection refused"):
        main(args)
    card = (out / "card.md").read_text("utf-8")
    assert "| houses | Guess | kind | 100.0 | 20 | 0 |" in card
    assert "| houses | Guess | down | – | 0 | 20 |" in card
    assert "| EM and kind | 55.0 |" in card
    rows = rows_of(out)
    assert rows[0]["judge"]["kind"] == {"verdict": True, "error": None}
    assert "connection refused" in rows[0]["judge"]["down"]["error"]
    kind, down = Says(says), Says()
    assert judge_rows(rows, {"kind": kind}, out) == []
    assert kind.calls == 0
    judge_rows(rows[:3], {"down": down}, out)
    assert down.calls, "a failure is asked again"


def test_agents_are_closed_whatever_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Oracle, "close", lambda agent: closed.append("oracle"))
    args = arguments(tmp_path / "out", question_file(tmp_path), Guess="doubles.evaluated.Oracle")
    args += ["--reference", "Guess", "--closed_book", "null"]
    monkeypatch.setattr(Oracle, "stop_after", 5)
    with pytest.raises(SystemExit):
        main(args)
    assert closed == ["oracle"]
    monkeypatch.setattr(Oracle, "stop_after", None)
    main(args)
    assert closed == ["oracle"] * 2


def test_a_judge_that_was_changed_judges_anew(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path), Guess="doubles.evaluated.Oracle")
    for model, said, share in (("one", "correct", "100.0"), ("two", "incorrect", "0.0")):
        judge = {"reply": f'{{"judgement": "{said}"}}', "model": model}
        judges = {"mine": {"class_path": "doubles.evaluated.Says", "init_args": judge}}
        main([*args, "--reference", "Guess", "--judges", json.dumps(judges)])
        card = (tmp_path / "out" / "card.md").read_text("utf-8")
        assert f"| houses | Guess | mine | {share} | 20 | 0 |" in card


def test_passages_are_known_by_what_they_are(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path), Guess="doubles.evaluated.Oracle")
    args += ["--reference", "Guess", "--closed_book", "null"]
    main([*args, "--index.contents", "house {rank}"])
    with pytest.raises(ValueError, match=r"searched\.contents was .*house.*, is .*barn"):
        main([*args, "--index.contents", "barn {rank}"])

    corpus = tmp_path / "corpus.jsonl"
    places = []
    for folder, text in (("a", "house"), ("b", "house"), ("a", "barn")):
        corpus.write_text(json.dumps({"id": "p", "contents": f"{text}\nbig"}) + "\n", "utf-8")
        index = build_index(
            corpus, tmp_path / folder, encoder=BM25SketchEncoder(dim=64), overwrite=True
        )
        source = config_module.DatasetConfig(str(tmp_path / "houses.jsonl"), index=str(index))
        places.append(Source("w", source, None, None).place)
    assert places[0] == places[1] != places[2]


def test_world_questions_bring_their_own_facts() -> None:
    world = config_module.WorldQuestions(hops={2: 1.0}, num_questions=7)
    source = Source("w", config_module.DatasetConfig(world=world, limit=5), None, None)
    assert len(source.questions) == 5
    asked = source.questions[0]
    found = source.retriever().search([asked.metadata["chain"][0]], 1)[0]
    assert found[0].id == asked.metadata["gold_ids"][0]
    assert source.place == "the world's facts"


def test_other_facts_behind_the_same_questions_are_told() -> None:
    def source(**world: Any) -> Source:
        asked = config_module.WorldQuestions(hops={1: 1.0}, num_questions=40, **world)
        return Source("w", config_module.DatasetConfig(world=asked), None, None)

    plain, renamed = source(), source(alias_share=0.5)
    assert [q.text for q in plain.questions] == [q.text for q in renamed.questions]
    assert plain.place != renamed.place, "rows over other facts must not mix"
    hidden = [q for q in renamed.questions if q.metadata["aliases"]]
    assert 10 < len(hidden) < 30
    first, again = hidden[0].metadata["chain"]
    found = renamed.retriever().search([first, again], 1)
    assert [passages[0].id for passages in found] == hidden[0].metadata["gold_ids"]
    asked = Prediction(hidden[0], "", queries=(first, again), passages=tuple(map(tuple, found)))
    assert self_correction(asked) == SelfCorrection(1, 1, misses=1, requeries=1, recoveries=1)
    asked = Prediction(hidden[0], "", queries=(first,), passages=(tuple(found[0]),))
    assert self_correction(asked) == SelfCorrection(1, 1, misses=1), "a name is not yet a fact"
    plainly = next(q for q in renamed.questions if not q.metadata["aliases"])
    found = renamed.retriever().search(plainly.metadata["chain"], 1)
    asked = Prediction(plainly, "", queries=(first,), passages=(tuple(found[0]),))
    assert self_correction(asked) == SelfCorrection(1)


@pytest.mark.parametrize("name", shipped_configs(EVALUATION))
def test_shipped_configs_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = find_config(name)
    assert Path(path).read_text("utf-8").startswith("#"), "a config begins by saying what it is"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    parser = make_parser()
    run = (
        ["--run", "mine"]
        if "run:" in yaml.safe_dump(yaml.safe_load(Path(path).read_text()))
        else []
    )
    config, described = read_config(parser, parser.parse_args(["--config", name, *run]))
    methods = check_config(config)
    assert config.out.startswith("mine") or described or name.endswith("checkpoints")
    agents = {method.agent.__name__ for method in methods.values()}
    if name.endswith("self_correction"):
        assert agents == {"ReSearch"}
        assert {model.model for model in config.models.values()} == {
            "mine/warmstart",
            "mine/policy",
        }
        return
    if name.endswith("checkpoints"):
        assert agents == {"ReSearch"}
        assert {m.protocol for m in config.models.values()} == {"search_r1", "hermes"}
        return
    assert agents == {"NaiveGeneration", "NaiveRAG", "IterRetGen", "IRCoT", "ReSearch"}
    assert config.closed_book == "Naive Generation"
    assert question(1).id == "q1"

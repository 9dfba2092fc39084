"""A model that fails when it is asked: what it would have said is not known, and that is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.question_pages import GOOD, opened

from research_rl.agents import ModelUnavailable, SamplingParams
from research_rl.agents.methods import Generation, Generator
from research_rl.trainers.make_questions.card import card_of_questions, making_record
from research_rl.trainers.make_questions.checks import KNOWN_BY_HEART, MODEL_FAILED
from research_rl.trainers.make_questions.drafts import Draft, Hop, NoDraft
from research_rl.trainers.make_questions.journal import Journal
from research_rl.trainers.make_questions.make import Made, MakingPlan, _verdicts
from research_rl.trainers.make_questions.metered import Metered
from research_rl.trainers.make_questions.written import Written

GREEDY = SamplingParams(20, temperature=0.0)
BROKEN = "HTTP 500: out of memory"


class Failing(Generator):
    """Fails where the input holds a word, and says one thing to all others."""

    def __init__(self, word: str, says: str = "nobody") -> None:
        self.word, self.says, self.asked = word, says, 0

    def generate(self, inputs: Any, params: Any, seeds: Any = None) -> list[Generation]:
        self.asked += len(inputs)
        fails = (self.word in json.dumps(one) for one in inputs)
        return [Generation.failed(BROKEN) if f else Generation(self.says, "eos") for f in fails]


def test_an_error_is_kept_with_its_call(tmp_path: Path) -> None:
    model = Failing("bad")
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        good, bad = Metered(model, journal, 9).generate(["good", "bad"], GREEDY)
        assert (good.text, good.error, bad.error) == ("nobody", None, BROKEN)
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        again = Metered(model, journal, 9).generate(["bad", "good"], GREEDY)
        assert [one.error for one in again] == [BROKEN, None]
        assert (journal.calls, journal.errors, model.asked) == (2, [BROKEN], 2)


def test_a_lone_prompt_that_always_fails_ends_one_run_and_not_the_next(tmp_path: Path) -> None:
    for prompts in (["good"], ["bad"]):
        with Journal(tmp_path / "j.jsonl", {}) as journal:
            model = Metered(Failing("bad"), journal, 9)
            if prompts == ["bad"]:
                with pytest.raises(ModelUnavailable, match=BROKEN):
                    model.generate(prompts, GREEDY)
            else:
                model.generate(prompts, GREEDY)
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        [bad] = Metered(Failing("bad"), journal, 9).generate(["bad"], GREEDY)
        assert (bad.error, journal.errors) == (BROKEN, [BROKEN])
    for _ in range(2):  # a server that is gone fails all
        with Journal(tmp_path / "other.jsonl", {}) as journal, pytest.raises(ModelUnavailable):
            Metered(Failing("bad"), journal, 9).generate(["bad 1", "bad 2"], GREEDY)


def test_a_journal_without_errors_is_read(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        journal.add_call(json.dumps("asked"), "written")
    assert "error" not in (tmp_path / "j.jsonl").read_text()
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        [one] = Metered(Failing("asked"), journal, 9).generate(["asked"], GREEDY)
        assert (one.text, one.error) == ("written", None)


def test_who_failed_does_not_know_nothing_by_heart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, _, checks = opened(tmp_path / "pages")
    monkeypatch.setattr(checks, "reasons", lambda drafts: [""] * len(drafts))
    places = {texts.title(place): place for place in range(len(texts))}
    hops = (
        Hop("mayor of Oslo", "Anne Berg", places["Oslo"], "Oslo"),
        Hop("brother of Anne Berg", "Kare Lund", places["Anne Berg"], "Anne Berg"),
    )
    draft = Draft(GOOD, ("Kare Lund",), hops)
    drafts = [replace(draft, text=f"{word} is it? {GOOD}") for word in ("Which", "Really")]
    splits = dict.fromkeys(texts.documents, "train")
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        model = Metered(Failing("Really", "Kare Lund"), journal, 9)
        said = _verdicts(drafts, texts, MakingPlan(), splits, checks, journal, model)
        assert said == [KNOWN_BY_HEART, MODEL_FAILED]
        assert journal.verdicts == {drafts[0].id: KNOWN_BY_HEART}, "nothing is known of the other"
        made = Made(refused=[(d.id, d.text, r) for d, r in zip(drafts, said, strict=True)])
        card = card_of_questions(making_record(made, {}, {}, journal), spent=False)
    assert f"| {MODEL_FAILED} | 1 |" in card
    assert f"failed in 1 of 2 calls, with:\n\n- {BROKEN}" in card


def test_a_proposal_that_failed_is_called_so(tmp_path: Path) -> None:
    texts, facts, _ = opened(tmp_path / "pages")
    splits = dict.fromkeys(texts.documents, "train")
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        proposer = Written(facts, Metered(Failing("The mayor of Oslo"), journal, 9))
        drafts = list(proposer.drafts(splits))
    failed = [one for one in drafts if isinstance(one, NoDraft) and one.reason == MODEL_FAILED]
    assert [one.text for one in failed] == [BROKEN]
    assert len(drafts) > 1

"""Reward terms against numbers worked out by hand, on hostile text, and through the linter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.protocols import PROTOCOLS, Segment, get_protocol
from research_rl.envs.rewards import RewardTerms, get_reward
from research_rl.envs.rewards.lint import lint_reward, load_reward
from research_rl.envs.rewards.presets import CoverReward
from research_rl.envs.rewards.terms import (
    NAMED_TERMS,
    AbstainTerm,
    ActionTerm,
    AnswerTerm,
    CitationTerm,
    EvidenceTerm,
    FormTerm,
    RewardTerm,
    SearchesTerm,
    abstained,
)
from research_rl.envs.types import UNANSWERABLE, Passage, Question

BOSS = Passage("p1", "Bakset\nthe boss of Bakset is Domlor .")
COACH = Passage("p2", "Domlor\nthe coach of Domlor is Veros .")
OTHER = Passage("p3", "Tamin\nthe coach of Tamin is Rolus .")
QUESTION = Question("1", "Who?", ("Veros",), {"gold_ids": ["p1", "p2"]})
NONE = Question("2", "Who?", UNANSWERABLE, {"unanswerable": True})


def played(answer: str = "\\boxed{Veros}", searches: int = 1, closed: bool = True) -> list[Segment]:
    segments: list[Segment] = []
    for _ in range(searches):
        segments.append(Segment("policy", "<think> t </think> <search> q </search>"))
        segments.append(Segment("env", " <result>\nBakset\nthe boss\n</result>"))
    end = " </answer>" if closed else ""
    return [*segments, Segment("policy", f"<think> t </think> <answer> {answer}{end}")]


def paid(term: RewardTerm, *args: Any, question: Question = QUESTION, found: Any = ()) -> float:
    return term(played(*args), question, found)


def test_answers() -> None:
    long = "\\boxed{Veros or so}"
    assert paid(AnswerTerm()) == 1.0
    assert paid(AnswerTerm(), long) == pytest.approx(2 / 4)  # precision 1/3, recall 1
    assert paid(AnswerTerm("em"), long) == 0.0
    assert paid(AnswerTerm("cover"), long) == 1.0
    assert paid(AnswerTerm(), "\\boxed{}") == 0.0
    assert AnswerTerm()([], QUESTION, ()) == 0.0
    with pytest.raises(ValueError, match="by must be one of f1, em, cover"):
        AnswerTerm("bleu")  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", ["A", "!!!", "The The"])
def test_an_answer_without_words_is_met_literally_or_not_at_all(gold: str) -> None:
    question = Question("3", "Which?", (gold, "Veros"))
    for by in ("f1", "em", "cover"):
        term = AnswerTerm(by)  # type: ignore[arg-type]
        assert paid(term, f"\\boxed{{{gold.lower()}}}", question=question) == 1.0
        assert paid(term, "\\boxed{Veros}", question=question) == 1.0
        for wrong in ("the", "an", "zebra", "?"):
            assert paid(term, f"\\boxed{{{wrong}}}", question=question) == 0.0, (by, wrong)
    for wrong in ("zebra", "the"):
        assert CoverReward()(played(f"\\boxed{{{wrong}}}"), question).value == 0.0
    assert CoverReward()(played(f"\\boxed{{{gold}}}"), question).value == 1.0


def test_titles_are_compared_whatever_their_composition() -> None:
    composed, apart = "Beyonc\u00e9", "Beyonce\u0301"
    found = [(Passage("p", f"{apart}\nsings for {apart} ."),)]
    question = Question("4", "Who?", (composed,), {"supporting_titles": [composed]})
    assert EvidenceTerm()(played(), question, found) == 1.0
    cited = [*played()[:-1], Segment("policy", f"<answer> [{composed}] \\boxed{{x}} </answer>")]
    assert CitationTerm()(cited, question, found) == 1.0
    assert CitationTerm()(cited, Question("5", "Who?", (composed,)), found) == 1.0


def test_form_and_actions() -> None:
    assert paid(FormTerm()) == 1.0
    assert FormTerm()(played(closed=False), QUESTION, ()) == 0.0
    found = [[BOSS]]
    assert paid(ActionTerm(), found=found) == 0.0
    assert paid(ActionTerm()) == -1.0, "no search"
    assert paid(ActionTerm(search=False)) == 0.0
    assert paid(ActionTerm(), "\\boxed{}") == -2.0


def test_evidence_counts_each_gold_passage_once() -> None:
    term = EvidenceTerm()
    assert paid(term, found=[[BOSS, OTHER], [BOSS]]) == 0.5
    assert paid(term, found=[[COACH], [BOSS]]) == 1.0
    assert paid(term) == 0.0
    titled = Question("1", "Who?", ("Veros",), {"supporting_titles": ["domlor ", "Nowhere"]})
    assert paid(term, question=titled, found=[[COACH, OTHER]]) == 0.5
    names = {"gold_ids": ["p1", "p2"], "fact_ids": ["p2"]}
    assert paid(term, question=Question("1", "Who?", ("a",), names), found=[[COACH]]) == 1.0


def test_evidence_says_once_that_nothing_is_known(caplog: pytest.LogCaptureFixture) -> None:
    term = EvidenceTerm()
    for number in range(3):
        assert paid(term, question=Question(f"n{number}", "Who?", ("a",)), found=[[BOSS]]) == 0.0
    assert [r.message for r in caplog.records if "neither gold_ids" in r.message] == [
        "question 'n0' has neither gold_ids nor supporting_titles in its metadata: evidence pays 0 "
        "for it and for all like it"
    ]
    assert paid(EvidenceTerm(), question=NONE) == 0.0
    assert len(caplog.records) == 1


def test_citations() -> None:
    found = [[BOSS, OTHER], [COACH]]
    said = "\\boxed{Veros}"
    assert paid(CitationTerm(), f"{said} [Bakset] [domlor]", found=found) == 1.0
    assert paid(CitationTerm(), f"{said} [Bakset] [Nobody]", found=found) == 0.5
    assert paid(CitationTerm(), f"{said} [Tamin]", found=found) == 0.0
    assert paid(CitationTerm(), said, found=found) == 0.0
    assert paid(CitationTerm(), f"{said} [Bakset]", found=[[OTHER]]) == 0.0, "never seen"
    plain = Question("1", "Who?", ("Veros",))
    assert paid(CitationTerm(), f"{said} [Domlor]", question=plain, found=found) == 1.0


def test_searches() -> None:
    three = [[], [BOSS], [BOSS]]
    assert paid(SearchesTerm(), found=three) == -3.0
    assert paid(SearchesTerm(free=1, most=1), found=three) == -1.0
    assert paid(SearchesTerm(free=5), found=three) == 0.0
    with pytest.raises(ValueError, match="must not be negative"):
        SearchesTerm(free=-1)


def test_abstention() -> None:
    said = "\\boxed{I don't know.}"
    assert paid(AbstainTerm(), said, question=NONE) == 1.0
    assert paid(AbstainTerm(), said) == 0.0
    assert paid(AbstainTerm(), "\\boxed{Rolus}") == 1.0, "an answer was called for"
    assert paid(AbstainTerm(), "\\boxed{Rolus}", question=NONE) == 0.0
    assert paid(AbstainTerm(), "\\boxed{}", question=NONE) == 0.0
    assert paid(AnswerTerm(), said, question=NONE) == 1.0
    assert paid(AnswerTerm(), "\\boxed{unknown Veros}", question=NONE) == 0.0
    assert not abstained("unknown soldier")


def test_a_schedule_by_hand() -> None:
    term = AnswerTerm(weight={0: 0.0, 20: 0.2, 30: 0.1})
    weights = [term.weight_at(i) for i in (0, 10, 20, 25, 30, 99, None)]
    assert weights == pytest.approx([0.0, 0.1, 0.2, 0.15, 0.1, 0.1, 0.1])
    assert AnswerTerm(weight={"5": 1.0}).weight_at(0) == 1.0, "as JSON writes it"  # type: ignore[dict-item]
    for wrong in ({}, {0: math.nan}, math.inf):
        with pytest.raises(ValueError, match="weight must be a finite number"):
            AnswerTerm(weight=wrong)


def test_the_sum_and_its_parts() -> None:
    reward = RewardTerms({"answer": 0.8, "evidence": 0.2, "searches": {"weight": 0.05, "free": 1}})
    verdict = reward.judge(played(), QUESTION, [[BOSS], [OTHER]])
    assert verdict.parts == pytest.approx({"answer": 0.8, "evidence": 0.1, "searches": -0.05})
    assert verdict.value == pytest.approx(0.85)
    assert (verdict.f1, verdict.em, verdict.prediction) == (1.0, 1.0, "Veros")
    malformed = reward.judge(played(closed=False), QUESTION, [[BOSS]])
    assert (malformed.value, set(malformed.parts.values())) == (0.0, {0.0})
    open_gate = RewardTerms({"evidence": 1.0}, gated=False)
    assert open_gate.judge(played(closed=False), QUESTION, [[BOSS]]).value == 0.5


def test_the_sum_is_cut() -> None:
    dear = {"answer": 1.0, "searches": {"weight": 1.0}}
    many = [[BOSS]] * 5
    assert RewardTerms(dear).judge(played(), QUESTION, many).value == 0.0
    assert RewardTerms(dear, low=-2).judge(played(), QUESTION, many).value == -2.0
    assert RewardTerms({"answer": 3.0}, high=1.0)(played(), QUESTION).value == 1.0


def test_the_weights_of_an_iteration() -> None:
    reward = RewardTerms({"answer": {"weight": {0: 0.0, 10: 1.0}}})
    found = []
    for iteration in (0, 5, None):
        reward.at(iteration)
        found.append(reward(played(), QUESTION).value)
    assert found == [0.0, 0.5, 1.0]


def test_an_unanswerable_question_is_right_in_other_words() -> None:
    verdict = RewardTerms({"answer": 1.0})(played("\\boxed{no answer}"), NONE)
    assert (verdict.f1, verdict.em, verdict.value) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("gold", ["insufficient information", "Unbekannt"])
def test_an_unanswerable_question_is_right_in_the_words_of_its_own_gold_answer(gold: str) -> None:
    question = Question("3", "Who?", (gold,), {"unanswerable": True})
    for said, value in ((gold.upper(), 1.0), ("no answer", 1.0), (f"{gold} Veros", 0.0)):
        answer = f"\\boxed{{{said}}}"
        for term in (AnswerTerm(), AnswerTerm("em"), AnswerTerm("cover"), AbstainTerm()):
            assert paid(term, answer, question=question) == value, said
        verdict = RewardTerms({"answer": 1.0})(played(answer), question)
        assert (verdict.f1, verdict.em, verdict.value) == (value, value, value)


def test_a_gold_answer_that_reads_like_an_abstention_is_an_answer() -> None:
    film = Question("4", "Which film?", ("Unknown",))
    assert paid(AbstainTerm(), "\\boxed{Unknown}", question=film) == 1.0
    assert paid(AbstainTerm(), "\\boxed{I don't know}", question=film) == 0.0


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "at least one of"),
        ({"answr": 1.0}, "did you mean 'answer'"),
        ({"answer": {"wait": 1.0}}, "the term answer cannot be made"),
        ({"a/b": 1.0}, "name must be letters"),
        ({"mine": {"class_path": "no.such.thing"}}, "can be imported, got 'no.such.thing'"),
        ({"mine": {"class_path": "math.pi"}}, "a RewardTerm or a function"),
        ({"mine": {"class_path": "math.sin", "wait": 1}}, "class_path, init_args and weight"),
        ({"answer": "much"}, "the term answer cannot be made"),
    ],
)
def test_terms_that_make_no_sense_are_refused(terms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardTerms(terms)


def test_terms_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_terms.py").write_text(
        "from research_rl.envs.rewards import RewardTerm\n"
        "class Short(RewardTerm):\n"
        "    def __init__(self, most=3, weight=1.0):\n"
        "        super().__init__(weight)\n"
        "        self.most = most\n"
        "    def __call__(self, segments, question, passages):\n"
        "        return float(len(segments) <= self.most)\n"
        "def seen(segments, question, passages):\n"
        "    return len(passages)\n"
        "def broken(segments, question, passages):\n"
        "    return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = {"class_path": "my_terms.Short", "init_args": {"most": 9}, "weight": 0.5}
    plain = {"class_path": "my_terms.seen", "weight": 0.1}
    verdict = RewardTerms({"short": made, "seen": plain}).judge(played(), QUESTION, [[BOSS]])
    assert verdict.parts == pytest.approx({"short": 0.5, "seen": 0.1})
    with pytest.raises(ValueError, match="the term mine must not raise on any text"):
        RewardTerms({"mine": {"class_path": "my_terms.broken"}})(played(), QUESTION)


KIT = {"answer": 0.6, "form": 0.1, "evidence": 0.1, "citations": 0.1, "abstain": 0.1}


@pytest.mark.parametrize(
    "terms",
    [
        KIT,
        {"answer": 1.0},
        {"answer": {"by": "em"}},
        *({"answer": 0.9, name: 0.1} for name in NAMED_TERMS if name != "answer"),
    ],
    ids=lambda terms: "+".join(terms),
)
def test_each_term_beside_the_answer_has_no_hole(terms: dict[str, Any]) -> None:
    assert lint_reward(RewardTerms(terms)) == []


@pytest.mark.parametrize("protocol", ["search_r1", "hermes", "r1_searcher"])
def test_the_kit_has_no_hole_in_other_languages(protocol: str) -> None:
    assert lint_reward(get_reward({"terms": KIT}), protocol=protocol) == []


def test_the_linter_finds_the_hole_of_covering() -> None:
    found = lint_reward(load_reward('{"answer": {"by": "cover", "weight": 1.0}}'))
    assert {finding.kind for finding in found} >= {"hackable"}


@pytest.mark.parametrize("text", ["{", '{"terms": 1}', '{"terms": {}, "more": 1}', "{}"])
def test_a_reward_in_json_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|mapping of|at least one"):
        load_reward(text)


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "}",
        "[",
        "]",
        "\ud800",
        "\x00",
        "a",
    ]
)
TURNS = st.lists(st.one_of(st.text(max_size=30), PIECES), max_size=12).map("".join)


@given(
    turns=st.lists(TURNS, max_size=4),
    found=st.lists(st.lists(st.text(max_size=20), max_size=3), max_size=4),
    answers=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3),
    gold=st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text(max_size=5), max_size=3)),
    protocol=st.sampled_from(sorted(PROTOCOLS)),
)
def test_no_text_breaks_a_term(
    turns: list[str], found: list[list[str]], answers: list[str], gold: Any, protocol: str
) -> None:
    metadata = {"gold_ids": gold, "supporting_titles": gold, "unanswerable": gold}
    question = Question("1", "Who?", tuple(answers), metadata)
    passages = [[Passage(str(i), text) for i, text in enumerate(row)] for row in found]
    segments = [Segment("policy", turn) for turn in turns]
    for name, make in NAMED_TERMS.items():
        value = make().speaking(get_protocol(protocol))(segments, question, passages)
        low, high = {"searches": (-10, 0), "actions": (-2, 0)}.get(name, (0, 1))
        assert low <= value <= high
    reward = get_reward({"terms": dict.fromkeys(NAMED_TERMS, 0.1)}, protocol=get_protocol(protocol))
    verdict = reward.judge(segments, question, passages)
    assert set(verdict.parts) == set(NAMED_TERMS)

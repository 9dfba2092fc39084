"""Measures of one prediction: how good its answer is, what it found, what it cost.

Answers are compared as in published work (:mod:`research_rl.envs.rewards`): EM and F1 are
HotpotQA's, cover-EM is FlashRAG's ``acc``. A prediction with an ``error`` has no value but
``failed``: a server that was down says nothing about an answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from research_rl.envs import Passage, Question, passage_title
from research_rl.envs.rewards import (
    cover_exact_match,
    exact_match,
    f1_score,
    fair_scores,
    normalize_answer,
)
from research_rl.envs.system import UNSPACED, fold_title, folded, typed

if TYPE_CHECKING:
    from research_rl.agents import Prediction

Scores = dict[str, float | None]

MEASURES: Mapping[str, str] = {
    "em": "exact match of the normalised answer with a gold answer, 0 or 1",
    "f1": "token F1 with the best gold answer, 0 to 1",
    "cover_em": "a normalised gold answer is a substring of the normalised answer, 0 or 1",
    "folded_em": "exact match as the reward `default` compares, 1,500 is 1500; 0 or 1",
    "answered": "there is an answer at all, 0 or 1",
    "support_recall": "share of the supporting paragraphs that all searches together found",
    "support_complete": "all supporting paragraphs were found, 0 or 1",
    "title_recall": "share of the supporting paragraphs' titles that all searches together found",
    "answer_in_results": "a gold answer stands in a passage that was found, 0 or 1",
    "searches": "queries asked",
    "distinct_queries": "queries that differ in more than case and white space",
    "sampled_tokens": "tokens that the model wrote",
    "result_tokens": "tokens of what the model was given between its own",
    "seconds": "wall time of a question",
    "format": "nothing is wrong with the form of the model's text, 0 or 1",
    "failed": "the model's server gave no answer, 0 or 1",
}
"""The names that ``measure_prediction`` returns, each with its meaning."""

_SPACELESS = re.compile(f"[{UNSPACED}]")
_UNTELLING = frozenset({"", "yes", "no", "noanswer"})  # found in almost any passage


def measure_prediction(prediction: Prediction) -> Scores:
    """Return every measure of MEASURES for one prediction.

    A measure is None where it has no value: EM without gold answers, recall without supporting
    paragraphs, ``answer_in_results`` for an answer of yes or no, ``result_tokens`` where passages
    were shown and their tokens not counted. An empty answer scores 0 whatever the gold answer is.
    """
    if prediction.error is not None:
        return {**dict.fromkeys(MEASURES), "failed": 1.0}
    question, passages = prediction.question, found_passages(prediction)
    recall = support_recall(question, passages)
    uncounted = bool(passages) and prediction.result_tokens == 0
    return {
        **_answer_measures(prediction),
        "support_recall": recall,
        "support_complete": None if recall is None else float(recall == 1.0),
        "title_recall": title_recall(question, passages),
        "answer_in_results": shown_answer(question, passages),
        "searches": float(len(prediction.queries)),
        "distinct_queries": float(len({fold_query(query) for query in prediction.queries})),
        "sampled_tokens": float(prediction.sampled_tokens),
        "result_tokens": None if uncounted else float(prediction.result_tokens),
        "seconds": prediction.seconds,
        "format": float(prediction.format_error is None),
        "failed": 0.0,
    }


def answer_scores(text: str, answers: Sequence[str]) -> dict[str, float]:
    """Return ``em``, ``f1`` and ``cover_em`` of a text, as the published evaluators give them.

    ``folded_em`` beside them is ours, see :func:`research_rl.envs.rewards.fair_scores`.
    As in the originals, a gold answer that normalises to nothing ("The The") has the cover-EM 1 and
    the F1 0 with any text, and without gold answers all three are 0.
    """
    return {
        "em": exact_match(text, answers),
        "f1": f1_score(text, answers),
        "cover_em": cover_exact_match(text, answers),
        "folded_em": fair_scores(text, answers)[1],
    }


def _answer_measures(prediction: Prediction) -> Scores:
    """``em``, ``f1``, ``cover_em``, ``folded_em`` and ``answered``."""
    text, answers = prediction.text, prediction.question.answers
    answered = bool(text.strip())
    names = ("em", "f1", "cover_em", "folded_em")
    scores: Scores
    if not answers:
        scores = dict.fromkeys(names)
    elif not answered:
        scores = dict.fromkeys(names, 0.0)
    else:
        scores = {**answer_scores(text, answers)}
    return {**scores, "answered": float(answered)}


def found_passages(prediction: Prediction) -> list[Passage]:
    """Return what all searches found, in order, with repetitions."""
    return [passage for result in prediction.passages for passage in result]


def support_recall(question: Question, passages: Iterable[Passage]) -> float | None:
    """Return the share of supporting paragraphs among the passages, 0 to 1.

    By ``gold_ids`` where the question has them, else by ``supporting_titles``; None with neither.
    Ids belong to the data set's own corpus; with another corpus, use ``title_recall``.
    """
    if gold := {str(identity) for identity in question.metadata.get("gold_ids") or ()}:
        return len(gold & {passage.id for passage in passages}) / len(gold)
    return title_recall(question, passages)


def title_recall(question: Question, passages: Iterable[Passage]) -> float | None:
    """Return the share of ``supporting_titles`` that a passage has, 0 to 1; None without any."""
    gold = {fold_title(title) for title in question.metadata.get("supporting_titles") or ()}
    if not gold:
        return None
    return len(gold & {passage_title(passage) for passage in passages}) / len(gold)


def fold_query(query: str) -> str:
    """Return a query without case, forms of Unicode and extra white space."""
    return " ".join(folded(query).split())


def answer_in_passages(answers: Sequence[str], passages: Iterable[Passage]) -> float | None:
    """Return 1.0 if the words of a gold answer stand next to each other in a passage, else 0.0.

    Both are normalised as for EM, and forms of Unicode and typographic signs are folded; whole
    words only, so "us" is not in "Russia", but for scripts that set no spaces. None where every
    answer is yes, no or normalises to nothing: almost any passage holds those.
    """
    wanted = {normalize_answer(folded(typed(answer))) for answer in answers} - _UNTELLING
    if not wanted:
        return None
    looked_for = {one if _SPACELESS.search(one) else f" {one} " for one in wanted}
    texts = (f" {normalize_answer(folded(typed(passage.contents)))} " for passage in passages)
    return float(any(answer in text for text in texts for answer in looked_for))


def shown_answer(question: Question, passages: Iterable[Passage]) -> float | None:
    """Return ``answer_in_passages`` of a question; None also where its answer is that it has none.

    Whatever was found, no passage holds the words "unknown" as an answer.
    """
    if question.metadata.get("unanswerable"):
        return None
    return answer_in_passages(question.answers, passages)


def format_errors(predictions: Iterable[Prediction]) -> dict[str, int]:
    """Return the number of each class of format error, the commonest first.

    The class is what stands before a colon: ``"no_answer: ..."`` counts as ``no_answer``. Failed
    predictions and those without an error are left out.
    """
    wrong = (p.format_error for p in predictions if p.format_error is not None and p.error is None)
    counted = Counter(error.partition(":")[0].strip() or "unknown" for error in wrong)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

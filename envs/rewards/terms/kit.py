"""A reward made of terms: each by its name with a weight, or a class of one's own.

``RewardTerms({"answer": 0.8, "evidence": 0.2})`` pays a right answer 0.8, and 0.2 more where every
gold passage was found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from importlib import import_module
from typing import Any, Self

from research_rl.envs.protocols import Protocol, Segment
from research_rl.envs.rewards.presets import DefaultReward, RewardFunction
from research_rl.envs.rewards.terms.abstain import AbstainTerm, says_none
from research_rl.envs.rewards.terms.answer import ActionTerm, AnswerTerm, FormTerm
from research_rl.envs.rewards.terms.base import Passages, RewardTerm, Weight
from research_rl.envs.rewards.terms.evidence import CitationTerm, EvidenceTerm, SearchesTerm
from research_rl.envs.system import did_you_mean
from research_rl.envs.types import Question, Reward

NAMED_TERMS: Mapping[str, Callable[..., RewardTerm]] = {
    "answer": AnswerTerm,
    "form": FormTerm,
    "actions": ActionTerm,
    "evidence": EvidenceTerm,
    "citations": CitationTerm,
    "searches": SearchesTerm,
    "abstain": AbstainTerm,
}
"""The terms that have a name."""


_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class _PlainTerm(RewardTerm):
    """A plain function of (segments, question, passages) as a term."""

    def __init__(self, function: Callable[..., float], weight: Weight = 1.0) -> None:
        super().__init__(weight)
        self._function = function

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        return self._function(segments, question, passages)


class RewardTerms(RewardFunction):
    """The sum of named terms, each times its weight, cut to [low, high].

    F1, exact match, prediction and format error of the verdict are those of ``default``, but that
    an unanswerable question is right in other words too (see ``says_none``); the parts are what
    each term added, by name, before the cut.

    Args:
        terms: by name: a weight for one of NAMED_TERMS, its options with ``weight`` among them, a
            RewardTerm, or {class_path, init_args} of a RewardTerm or of a function
            ``(segments, question, passages) -> float``.
        low: least that is paid; with 0 a wrong answer is not worth less for its searches.
        high: most that is paid; None is no limit.
        gated: a response of wrong form earns nothing, whatever its terms say.

    Raises:
        ValueError: there is no term, an unknown name, or options that make no sense.
    """

    def __init__(
        self,
        terms: Mapping[str, Any],
        low: float = 0.0,
        high: float | None = None,
        gated: bool = True,
    ) -> None:
        if not terms:
            raise ValueError(f"terms must hold at least one of {', '.join(NAMED_TERMS)}, got none")
        if high is not None and not low <= high:
            raise ValueError(f"high must be at least low, got {high} and {low}")
        self.terms = {str(name): _made(str(name), given) for name, given in terms.items()}
        self.low, self.high, self.gated = low, high, gated
        self.part_names = tuple(self.terms)
        self._verdict = DefaultReward()
        self._iteration: int | None = None

    def speaking(self, protocol: Protocol) -> Self:
        """Return the reward for responses in another language."""
        twin = copy(self)
        twin.protocol, twin._verdict = protocol, self._verdict.speaking(protocol)
        twin.terms = {name: term.speaking(protocol) for name, term in self.terms.items()}
        return twin

    def at(self, iteration: int | None) -> None:
        """Take the weights of an iteration; None takes the last ones."""
        self._iteration = iteration

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict on an episode of which no passage is known."""
        return self.judge(segments, question, ())

    def judge(self, segments: Sequence[Segment], question: Question, passages: Passages) -> Reward:
        """Return the verdict.

        Raises:
            ValueError: a term raised, or returned something else than a finite number.
        """
        verdict = self._verdict(segments, question)
        f1, em, error, said = verdict.f1, verdict.em, verdict.format_error, verdict.prediction
        if question.metadata.get("unanswerable"):  # whoever says so in other words is right too
            f1 = em = float(says_none(said, question.answers))
        if self.gated and error is not None:
            return Reward(0.0, f1, em, error, said, dict.fromkeys(self.terms, 0.0))
        parts = {
            name: term.weight_at(self._iteration) * _value(name, term, segments, question, passages)
            for name, term in self.terms.items()
        }
        value = max(self.low, sum(parts.values()))
        value = value if self.high is None else min(self.high, value)
        return Reward(value, f1, em, error, said, parts)


def _value(
    name: str,
    term: RewardTerm,
    segments: Sequence[Segment],
    question: Question,
    passages: Passages,
) -> float:
    try:
        value = float(term(segments, question, passages))
    except Exception as error:
        raise ValueError(
            f"the term {name} must not raise on any text, got {type(error).__name__}: {error}"
        ) from error
    if not math.isfinite(value):
        raise ValueError(f"the term {name} must return a finite number, got {value}")
    return value


def _made(name: str, given: Any) -> RewardTerm:
    """The term that a config means by a name and what stands behind it."""
    if not _NAME.fullmatch(name):  # it becomes the name of a metric
        raise ValueError(f"a term's name must be letters, digits, _ and -, got {name!r}")
    if isinstance(given, RewardTerm):
        return given
    options = dict(given) if isinstance(given, Mapping) else {"weight": given}
    if "class_path" in options:
        return _loaded_term(name, options)
    if name not in NAMED_TERMS:
        hint = did_you_mean(name, list(NAMED_TERMS), quoted=True) or "; or give its class_path"
        raise ValueError(f"terms must be of {', '.join(NAMED_TERMS)}, got {name!r}{hint}")
    return _called(name, NAMED_TERMS[name], options)


def _loaded_term(name: str, options: dict[str, Any]) -> RewardTerm:
    path, arguments = str(options["class_path"]), dict(options.get("init_args") or {})
    arguments |= {"weight": options["weight"]} if "weight" in options else {}
    if extra := sorted(set(options) - {"class_path", "init_args", "weight"}):
        raise ValueError(f"the term {name} must hold class_path, init_args and weight, got {extra}")
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the term {name} must name a class or function that can be imported, got {path!r}: "
            f"{error}; run the command where {module.replace('.', '/') or path}.py lies"
        ) from error
    if isinstance(found, type) and issubclass(found, RewardTerm):
        return _called(name, found, arguments)
    if callable(found) and not isinstance(found, type):
        return _called(name, lambda **given: _PlainTerm(found, **given), arguments)
    raise ValueError(
        f"the term {name} must be a RewardTerm or a function of (segments, question, passages), "
        f"got {path}, a {type(found).__name__}"
    )


def _called(name: str, make: Callable[..., RewardTerm], options: Mapping[str, Any]) -> RewardTerm:
    try:
        return make(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the term {name} cannot be made of {dict(options)}: {error}") from error


def class_paths_in(terms: Any) -> dict[str, str]:
    """Return which terms of a config name a class of their own, and which."""
    held = terms.items() if isinstance(terms, Mapping) else ()
    return {
        str(name): str(given["class_path"])
        for name, given in held
        if isinstance(given, Mapping) and "class_path" in given
    }

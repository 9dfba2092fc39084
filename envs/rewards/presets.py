r"""Rewards of a finished episode: the three presets of ReSearch.

``default`` pays ``max(F1, 0.1)`` when the format is right and 0 otherwise; ``paper`` pays F1, or
0.1 for the right format alone (equation 2 of arXiv 2503.19470); ``paper-code`` pays what the code
of that paper pays (:mod:`research_rl.envs.rewards.paper_code`). None raises, whatever the text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from research_rl.envs.protocols import Answer, Segment, format_error, parse_action
from research_rl.envs.rewards.answers import exact_match, f1_score, normalize_answer, plain_latex
from research_rl.envs.rewards.fair import fair_scores
from research_rl.envs.rewards.paper_code import extract_prediction
from research_rl.envs.system import did_you_mean
from research_rl.envs.types import Question, Reward

FORMAT_REWARD = 0.1
"""Paid for a wrong answer in the right format (ReSearch, equation 2)."""


class RewardFunction(ABC):
    """Judges a finished episode: every turn of the policy and every result, in order.

    ``original_rollout`` True makes the episode play the rules of the paper's code too: an empty
    query is searched, and tags inside passages are left as they are.
    """

    original_rollout: bool = False

    @abstractmethod
    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict; must not raise on any text."""


class DefaultReward(RewardFunction):
    """``max(F1, 0.1)`` if the format is right, else 0: monotone in F1, blind to retrieved text.

    The prediction is the last box of the answer in plain words (:func:`plain_latex`). It is
    compared as a reader does, numbers as numbers, in any script: see :func:`fair_scores`. A gold
    answer without a word ("The The", "!!!") must be met literally, case aside.
    """

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict."""
        error = format_error(segments)
        turns = [segment.text for segment in segments if segment.kind == "policy"]
        action = parse_action(turns[-1]) if turns else None
        prediction = plain_latex(action.text) if isinstance(action, Answer) else ""
        f1, em = self.compare(prediction, question.answers) if prediction else (0.0, 0.0)
        return Reward(self.value(f1, error), f1, em, error, prediction)

    def value(self, f1: float, error: str | None) -> float:
        """Return what an answer of this F1 in this form is paid."""
        return max(f1, FORMAT_REWARD) if error is None else 0.0

    def compare(self, prediction: str, answers: Sequence[str]) -> tuple[float, float]:
        """Return F1 and exact match."""
        return fair_scores(prediction, answers)


class PaperReward(DefaultReward):
    """F1 if it is above 0, else 0.1 if the format is right, else 0; format does not gate F1."""

    def value(self, f1: float, error: str | None) -> float:
        """Return equation 2 of arXiv 2503.19470."""
        return f1 or (FORMAT_REWARD if error is None else 0.0)

    def compare(self, prediction: str, answers: Sequence[str]) -> tuple[float, float]:
        """Return F1 and exact match by the published formula."""
        wordy = [answer for answer in answers if normalize_answer(answer)]
        literal = {_fold(answer) for answer in answers if not normalize_answer(answer)}
        if _fold(prediction) in literal:
            return 1.0, 1.0
        return f1_score(prediction, wordy), exact_match(prediction, wordy)


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


class PaperCodeReward(RewardFunction):
    """What the paper's code pays, its quirks included.

    Args:
        chat: the prompt is a chat prompt; the original cuts the response out of the whole text at
            the first ``assistant`` marker, and the marker depends on it.
    """

    original_rollout = True
    _EOS = "<|endoftext|>"  # an episode that was cut off is not judged, so each one here has ended

    def __init__(self, chat: bool = False) -> None:
        self.marker = "<|im_start|>assistant\n" if chat else "Assistant:"

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict."""
        response = "".join(segment.text for segment in segments)
        text = f"{question.text}\n{self.marker}{response}{self._EOS}"
        prediction, error = extract_prediction(text, self._EOS)
        if error is not None:
            return Reward(0.0, format_error=error)
        f1 = f1_score(prediction, question.answers)
        em = exact_match(prediction, question.answers)
        return Reward(f1 or FORMAT_REWARD, f1, em, None, prediction)


def get_reward(reward: str | RewardFunction, chat: bool = False) -> RewardFunction:
    """Return the preset of this name, or the function itself.

    Args:
        reward: ``default``, ``paper``, ``paper-code`` or a RewardFunction.
        chat: whether the prompt is a chat prompt (only ``paper-code`` depends on it).

    Raises:
        ValueError: no preset has this name.
    """
    if isinstance(reward, RewardFunction):
        return reward
    match reward:
        case "default":
            return DefaultReward()
        case "paper":
            return PaperReward()
        case "paper-code":
            return PaperCodeReward(chat)
    known = ["default", "paper", "paper-code"]
    hint = did_you_mean(reward, known, quoted=True) or "; or give a RewardFunction"
    raise ValueError(f"reward must be one of {known}, got {reward!r}{hint}")

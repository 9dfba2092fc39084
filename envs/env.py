"""ReSearch-v0, the environment: one question, a search tool, a reward at the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym

from research_rl.envs.episode import Episode
from research_rl.envs.protocols import RESEARCH, Opened, Prompt, PromptChoice, Protocol
from research_rl.envs.render import render_ansi
from research_rl.envs.rewards import RewardFunction
from research_rl.envs.spaces import UnicodeText
from research_rl.envs.task import QuestionLike, Task
from research_rl.envs.types import Retriever

__all__ = ["Episode", "ReSearchEnv"]


class ReSearchEnv(gym.Env[str, str]):
    r"""Answer a question by thinking and searching, in text.

    ## Description
    The agent reads a question and writes turns of text. A turn that ends in ``</search>`` runs the
    query between the tags against a text index, and the passages found come back as the next
    observation. A turn without a search ends the episode: with ``<answer> ... \boxed{x} ...
    </answer>`` it is an answer and is judged against the question's gold answers. This is the
    environment of "ReSearch: Learning to Reason with Search for LLMs via Reinforcement Learning"
    (arXiv 2503.19470).

    Without arguments it plays a small built-in world of made-up people, so
    ``gym.make("research_rl.envs:ReSearch-v0")`` works at once.

    ## Action Space
    ``UnicodeText(0, max_chars)``: the text of one turn, without the end-of-sequence string. A
    policy stops writing at ``metadata["stop_strings"]``, included, or at its end of sequence.
    Longer turns and characters behind ``</search>`` are accepted. Other protocols have other tags,
    or calls of a tool; ``env.metadata`` tells the stop strings of the one that was chosen.

    ## Observation Space
    ``UnicodeText(0, max_chars)``: what to append to the transcript. The prompt at reset, the block
    ``" <result>\n...\n</result>"`` after a search, ``""`` at the end. The ``Transcript`` wrapper
    gives the whole transcript instead. A result longer than ``max_chars`` loses whole passages
    from its end; the last one left is shortened by halves.

    ## Rewards
    0 until the end. Then, with F1 the best token F1 of the boxed prediction over the gold answers:

    | reward | pays |
    |---|---|
    | ``default`` | ``max(F1, 0.1)`` if the policy's own text is well formed, else 0 |
    | ``paper`` | F1 if it is above 0, else 0.1 if the text is well formed, else 0 |
    | ``paper-code`` | what the paper's code pays: F1 or 0.1 if its format check passes, else 0 |
    | ``em`` | 1 for an exact match in the right form, else 0 |
    | ``cover`` | 1 if an answer stands in the prediction, in the right form, else 0 |

    A sum of terms, ``{"terms": {"answer": 0.8, "evidence": 0.2}}``, pays what its terms say; see
    docs/rewards.md.

    A positive answer reward is lowered by ``search_cost`` for each search, but never below the
    0.1 that a wrong answer in the right format earns.

    ## Starting State
    A question drawn uniformly by ``np_random``: equal seeds give equal questions, so a group is a
    list of equal seeds. ``reset(options={"question": q})`` asks ``q`` instead: a ``Question``, a
    mapping (FlashRAG layout) or the number of one of the environment's questions.

    ## Episode End
    | event | terminated | truncated | finish_reason |
    |---|---|---|---|
    | a complete answer | True | False | ``answer`` |
    | neither search nor complete answer | True | False | ``no_answer`` (reward 0) |
    | a search after ``max_searches`` searches | False | True | ``search_budget`` (reward 0) |
    | ``max_episode_steps`` (TimeLimit) | False | True | |

    ## Arguments
    * ``questions``: a file or data set name (see ``read_questions``), or a list of questions
      (``Question`` or mapping).
    * ``index``: a folder made by ``research index build``, or a ``Retriever``. With an index and
      no questions, every reset must bring its question.
    * ``top_k``: passages of a search.
    * ``max_searches``: searches of an episode; the last result says that the budget is used, and
      another search truncates. None: no limit.
    * ``search_cost``: see Rewards.
    * ``max_chars``: longest observation, in characters.
    * ``reward``: ``default``, ``paper``, ``paper-code``, ``em``, ``cover`` or a
      ``RewardFunction``.
    * ``prompt``: ``base``, ``instruct``, a text with ``{prompt}``, a chat as ``{system, user}``,
      ``{about}`` (what the documents are), a file of one of these, or a ``Prompt``.
    * ``protocol``: how turns and replies are written: ``research``, ``search_r1``, ``hermes`` and
      others (see ``get_protocol``), or a ``Protocol``.
    * ``on_retriever_error``: ``raise`` a ``RetrieverUnavailable``, after which the same step may
      be tried again, or ``observe`` it as a result text (listed in ``Episode.failed_results``).
    * ``render_mode``: None, or ``ansi``: the episode so far in colour.

    ## Info
    * reset: ``question_id``, ``question``.
    * step: ``action_type`` (``search``, ``answer``, ``malformed``), ``query``, ``num_searches``,
      ``num_passages`` (shown by this search), ``invalid`` (``""``, ``empty_query``,
      ``invalid_call``, ``too_many`` or ``retriever_unavailable``). Several queries of a turn stand
      in ``query`` one a line.
    * the last step, besides: ``finish_reason``, ``prediction``, ``f1``, ``em``, ``format``,
      ``format_error``, ``reward_answer``, ``reward_format``.

    ## Version History
    * v0: initial version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": ["ansi"],
        "render_fps": 1,  # check_env warns without it
        "stop_strings": RESEARCH.stops,
    }

    def __init__(
        self,
        questions: str | Path | Sequence[QuestionLike] | None = None,
        index: str | Path | Retriever | None = None,
        top_k: int = 5,
        max_searches: int | None = None,
        search_cost: float = 0.0,
        max_chars: int = 32768,
        reward: str | RewardFunction | Mapping[str, Any] = "default",
        prompt: PromptChoice = "base",
        on_retriever_error: str = "raise",
        protocol: str | Protocol = "research",
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        self.task = Task(
            questions,
            index,
            top_k,
            max_searches,
            search_cost,
            max_chars,
            reward,
            prompt,
            on_retriever_error,
            protocol,
        )
        self.metadata = {**type(self).metadata, "stop_strings": self.task.protocol.stops}
        self.render_mode = render_mode
        self.observation_space = UnicodeText(max_chars)
        self.action_space = UnicodeText(max_chars)
        self._episode: Episode | None = None
        self._opened: Opened | None = None

    @property
    def prompt(self) -> Prompt:
        """The text in front of the response."""
        return self.task.prompt

    @property
    def protocol(self) -> Protocol:
        """How turns and replies are written."""
        return self.task.protocol

    @property
    def episode(self) -> Episode:
        """The episode being played.

        Raises:
            gymnasium.error.ResetNeeded: there is none yet.
        """
        if self._episode is None:
            raise gym.error.ResetNeeded("call reset() before step() or render()")
        return self._episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode; return the prompt, and an info that names the question.

        Args:
            seed: seeds the draw of questions.
            options: ``question`` asks that one; ``opened`` is what the policy's chat template
                opens of the response, such as ``<think>``: a text, or one for the first turn and
                one for later turns. It holds until another is given; None is what the prompt opens.
        """
        super().reset(seed=seed)  # check_env: np_random alone may decide the question
        check_options(options, known=("question", "opened"))
        given = options or {}
        if "opened" in given:
            self._opened = opened_option(given["opened"])
        self._episode = self.task.episode(given.get("question"), self.np_random, self._opened)
        return self._episode.prompt, self._episode.reset_info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one turn.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over or has not begun.
            RetrieverUnavailable: the search failed; nothing has changed, the step may be repeated.
        """
        episode = self.episode
        if episode.done:
            raise gym.error.ResetNeeded("the episode is over; call reset() before step()")
        return episode.finish(self.task.search(episode.begin(str(action))))

    def fork(self) -> ReSearchEnv:
        """Return an independent copy: the same episode so far, the same questions drawn later.

        Questions, retriever and rules are shared. This copies the bare environment; to copy one
        with its wrappers, as ``gym.make`` returns it, use :func:`research_rl.envs.fork`.
        """
        twin = copy(self)
        twin.observation_space = deepcopy(self.observation_space)
        twin.action_space = deepcopy(self.action_space)
        twin._np_random = deepcopy(self._np_random)
        twin._episode = None if self._episode is None else self._episode.fork()
        return twin

    def render(self) -> str | None:
        """Return the episode so far in colour, None without a render mode."""
        if self.render_mode is None:
            return None
        shown = self.episode
        return render_ansi(shown.prompt, shown.segments, self.protocol, shown.opened.first)


def check_render_mode(render_mode: str | None) -> None:
    """Refuse a render mode that the environment does not have."""
    if render_mode not in (None, "ansi"):
        raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")


def opened_option(opened: Any) -> Opened | None:
    """Return what the reset option ``opened`` means.

    Raises:
        ValueError: it is neither a text nor two.
    """
    if opened is None or isinstance(opened, Opened):
        return opened
    texts = (opened, "") if isinstance(opened, str) else opened
    known = isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)
    if not known or len(texts) != 2:
        raise ValueError(
            "the option opened must be a text, or one for the first turn and one for later turns, "
            f"got {opened!r}"
        )
    return Opened(*texts)


def check_options(options: Mapping[str, Any] | None, known: Sequence[str]) -> None:
    """Refuse reset options that nothing reads."""
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ValueError(f"reset options must be among {list(known)}, got {unknown}")

"""The one way in which a question is played for a user: in the terminal, the page, the servers.

An ``Asker`` plays the episodes of training and passes on what happens in them, stretch by stretch::

    asker.answer(["Who directed Alien?"], [lambda stretch: print(stretch.text, end="")])
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from research_rl.agents import (
    Engine,
    LMPolicy,
    Message,
    OnStop,
    Prediction,
    ReSearchAgent,
    SamplingParams,
    Sequence,
    ServedReSearchAgent,
    vector_rows,
)
from research_rl.agents.engines import StreamingEngine
from research_rl.agents.methods import opened_of
from research_rl.agents.policy import quoted_words
from research_rl.agents.web import ending_engine
from research_rl.envs import Episode, Passage, Question
from research_rl.envs.protocols import Protocol

LONGEST_QUESTION = 8192
"""Characters of a question."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = "ask"  # of every question: its seed is made from it, and shall be the same everywhere


class FoundPassages(NamedTuple):
    """A query of an episode and what it found, best first."""

    query: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Stretch:
    """A stretch of an episode, as soon as it is there.

    Args:
        role: who wrote it.
        text: of the model a few tokens or a turn, behind what the prompt had opened of it; of the
            environment a reply, without a chat template's words around it.
        found: what the reply shows.
        turn: of which turn it is a part, or which one it answers, from 0.
    """

    role: Literal["model", "environment"]
    text: str
    found: tuple[FoundPassages, ...] = ()
    turn: int = 0


Hear = Callable[[Stretch], None]
"""Hears the stretches of one episode, in order."""
IsGone = Callable[[int], bool]
"""Whether nobody waits for the answer to the question of this number any more."""


class NobodyWaitsError(RuntimeError):
    """Nobody waits for the answer any more."""


class Asker:
    """Plays questions with an agent and tells what happens in them.

    One question on a local model is told token by token. Several are played together and told turn
    by turn, as everything is that is sampled on a server. The answers are those of
    ``collect_rollouts``, up to the rounding of another batch.

    Args:
        agent: the policy with its search tool; its engine is not used.
        max_slots: questions under way together on a local model.
    """

    def __init__(self, agent: ReSearchAgent | ServedReSearchAgent, max_slots: int = 16) -> None:
        self.agent, self._max_slots = agent, max_slots
        self.params, self.seed = agent.params, agent.seed
        self._rows = vector_rows(agent.env)
        self._hears: Seq[Hear] = ()
        self._is_gone: IsGone = lambda row: False
        self._begun = -1
        self._ended: Counter[int] = Counter()  # turns that were told of, by row
        self._together: Engine | None = None
        if isinstance(agent, ServedReSearchAgent):
            agent.on_step = self._served
        else:
            self._alone = StreamingEngine(agent.policy, self._streamed)

    @property
    def protocol(self) -> Protocol:
        """The language of the episodes."""
        return self._rows.protocol

    def check(self, question: str, params: SamplingParams | None = None) -> None:
        """Refuse a question that cannot be played.

        Raises:
            ValueError: it is empty, or too long for the model; says what must hold.
        """
        if not question.strip():
            raise ValueError("must hold a question, got nothing but white space")
        if len(question) > LONGEST_QUESTION:
            raise ValueError(
                f"must have at most {LONGEST_QUESTION} characters, got {len(question)}"
            )
        if _SURROGATE.search(question):
            raise ValueError("must be text that UTF-8 can write, got half of a surrogate pair")
        if isinstance(self.agent, ServedReSearchAgent):
            return  # its server counts
        policy, budget = self.agent.policy, (params or self.params).max_response_tokens
        prompt = len(policy.encode_prompt(self._rows.prompt, question))
        if policy.max_length is not None and prompt + budget > policy.max_length:
            raise ValueError(
                f"and the {budget} tokens of its answer must fit in the model's "
                f"{policy.max_length} positions, got a prompt of {prompt} tokens; ask something "
                "shorter, or allow fewer tokens"
            )

    def notes(self, question: str) -> list[str]:
        """Return what is to be told of a question before its answer, a text each; mostly none.

        A model whose tokenizer cannot write the words of a question answers it as if it could. Of a
        model on a server nobody knows that here.
        """
        if isinstance(self.agent, ServedReSearchAgent):
            return []
        unknown = self.agent.policy.unknown_words
        words = unknown.of(question)
        if not words:
            return []
        one = len(words) == 1
        tokens, those, them = (
            ("token", "this word", "it") if one else ("tokens", "these words", "them")
        )
        return [
            f"The model reads {unknown.token} in place of {quoted_words(words)}, which its "
            f"tokenizer has no {tokens} for: it cannot search for {those}, and the answer cannot "
            f"be about {them}."
        ]

    def answer(
        self,
        questions: Seq[str],
        hears: Seq[Hear],
        params: SamplingParams | None = None,
        seed: int | None = None,
        is_gone: IsGone = lambda row: False,
    ) -> list[Prediction]:
        """Play questions, and return their answers in order; one call at a time.

        Args:
            questions: as they are asked; ``check`` has let them through.
            hears: for each question, who hears of it, in this thread. What it raises ends all.
            params: how to sample; None is as the agent does.
            seed: of sampled texts; None is the agent's.
            is_gone: asked in the middle, here and there; such an episode ends as soon as it can.

        Raises:
            NobodyWaitsError: the only question is one that nobody waits for.
            RetrieverUnavailable: a search failed.
            ModelUnavailable: the model's server is gone.
        """
        self._hears, self._is_gone, self._begun = hears, is_gone, -1
        agent = self.agent
        agent.params = self.params if params is None else params
        agent.seed = self.seed if seed is None else seed
        asked = [Question(_ID, question, ("",)) for question in questions]
        if isinstance(agent, ServedReSearchAgent):
            return agent.answer(asked)
        if len(asked) == 1:
            agent.engine = self._alone
            return agent.answer(asked)
        self._ended.clear()
        agent.engine = _TurnByTurn(self._ending(agent.policy), self._stopped)
        told = agent.answer(asked)
        for row, prediction in enumerate(told):
            self._tell_rest(row, prediction)
        return told

    def close(self) -> None:
        """Close the environment."""
        self.agent.env.close()

    def _ending(self, policy: LMPolicy) -> Engine:
        """What plays several questions at once; whoever is gone writes no more."""

        def is_over(rows: Tensor, positions: Tensor) -> Tensor:
            return torch.tensor([self._is_gone(row) for row in rows.tolist()])

        self._together = self._together or ending_engine(policy, is_over, self._max_slots)
        return self._together

    def _streamed(self, role: str, text: str) -> None:
        """Pass on what the streaming engine tells of its one sequence."""
        episode = self._rows.episodes[0]
        turn = len(episode.turns)
        if role != "model":
            self._begun = -1
            self._hear(0, _reply(episode))
            return
        if self._begun != turn:
            text = opened_of(episode, turn) + text
            self._begun = turn
        self._hear(0, Stretch("model", text, turn=turn))
        if self._is_gone(0):
            raise NobodyWaitsError("nobody waits for the answer")

    def _stopped(self, row: int, goes_on: bool) -> None:
        """Pass on a turn that ended, and its reply."""
        episode = self._rows.episodes[row]
        turn = len(episode.turns) - 1
        text = opened_of(episode, turn) + episode.turns[turn]
        self._ended[row] += 1
        self._hear(row, Stretch("model", text, turn=turn))
        if goes_on:
            self._hear(row, _reply(episode))

    def _tell_rest(self, row: int, prediction: Prediction) -> None:
        """Pass on the turn that the budget cut off, which no engine tells of."""
        written = [step.text for step in prediction.steps if step.role == "model"]
        for turn in range(self._ended[row], len(written)):
            self._hear(row, Stretch("model", written[turn], turn=turn))

    def _served(self, question: Question, step: Message) -> None:
        """Pass on a step that was made with a model on a server."""
        row = next(n for n, e in enumerate(self._rows.episodes) if e.question is question)
        episode = self._rows.episodes[row]
        if step.role == "model":  # heard before the environment hears it
            self._hear(row, Stretch("model", step.text, turn=len(episode.turns)))
            return
        self._hear(row, _reply(episode, step.text))
        if self._is_gone(row):
            episode.cut("length")

    def _hear(self, row: int, stretch: Stretch) -> None:
        self._hears[row](stretch)


class _TurnByTurn(Engine):
    """An engine that tells which sequences ended a turn, and whether they go on.

    Args:
        engine: samples.
        on_turn: hears the row, and whether the reply is read.
    """

    def __init__(self, engine: Engine, on_turn: Callable[[int, bool], None]) -> None:
        self._engine, self._on_turn = engine, on_turn

    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run."""
        budget = params.max_response_tokens

        def told(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
            given = on_stop(stopped)
            for (row, sequence), ids in zip(stopped, given, strict=True):
                fits = ids is not None and len(sequence.response_ids) + len(ids) < budget
                self._on_turn(row, fits)
            return given

        return self._engine.run(prompts, params, told, seeds)


def _reply(episode: Episode, text: str | None = None) -> Stretch:
    """The last reply of an episode, and what it shows."""
    found = tuple(
        FoundPassages(episode.queries[place], tuple(episode.passages[place]))
        for place in episode.last_places
    )
    text = episode.results[-1] if text is None else text
    return Stretch("environment", text, found, turn=len(episode.turns) - 1)

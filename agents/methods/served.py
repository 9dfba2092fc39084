"""ReSearch on any generator: the environment of training, played as text.

On a model in this process the episode is played token by token as in training; behind a server
the transcript goes over the wire as text or as chat messages, turn by turn, and the server
tokenises it anew. There a passage can forge what the server's own template writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import gymnasium as gym

from research_rl.agents.engines import seed_of
from research_rl.agents.methods.dialogue import Dialogue, OneMessage, SeparateMessages, turn_text
from research_rl.agents.methods.generators import Generation, Generator, LocalGenerator, tell_once
from research_rl.agents.methods.research import (
    Agent,
    Message,
    Prediction,
    ReSearchAgent,
    alternate,
    opened_of,
    whole_turns,
)
from research_rl.agents.rollout import vector_rows
from research_rl.agents.types import SamplingParams
from research_rl.envs import Episode, Question, ReSearchVectorEnv, Retriever
from research_rl.envs.protocols import Opened, Prompt, PromptChoice, Protocol
from research_rl.envs.rewards import RewardFunction

log = logging.getLogger(__name__)
_CHARS_A_TOKEN = 4

OnStep = Callable[[Question, Message], None]
"""Hears every step of a question as it is made."""


class ReSearch(Agent):
    """The trained policy with its search tool, wherever it runs; made like the baselines.

    Args:
        generator: a LocalGenerator plays episodes exactly as in training; any other one is played
            as text.
        retriever: searches.
        top_k: passages of a search.
        max_searches: searches of an episode; None for no limit.
        prompt: the one it was trained with: ``base``, ``instruct``, a text with ``{prompt}``, a
            chat as ``{system, user}``, or a file of one of these.
        reward: judges the form of the text (``default``, ``paper``, ``paper-code``).
        max_response_tokens: budget of an episode, results included.
        max_result_tokens: cap of one result; None for no cap.
        temperature: 0 is greedy.
        seed: of sampled texts; each question has its own seed made from it.
        protocol: the one it was trained in: ``research``, ``search_r1``, ``hermes`` or another
            dialect, or a Protocol.
        stop: strings that end a turn; None is what the protocol says.
        max_chars: length of the longest result, in characters.
    """

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever | None = None,
        top_k: int = 5,
        max_searches: int | None = None,
        prompt: PromptChoice = "base",
        reward: str | RewardFunction = "default",
        max_response_tokens: int = 8192,
        max_result_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        protocol: str | Protocol = "research",
        stop: tuple[str, ...] | None = None,
        max_chars: int = 32768,
    ) -> None:
        self.env = gym.make_vec(
            "research_rl.envs:ReSearch-v0",
            num_envs=1,
            autoreset_mode="Disabled",
            index=retriever,
            top_k=top_k,
            max_searches=max_searches,
            prompt=prompt,
            reward=reward,
            protocol=protocol,
            max_chars=max_chars,
        )
        ends = None if stop is None else tuple(stop)
        params = SamplingParams(max_response_tokens, max_result_tokens, temperature, stop=ends)
        self.agent: Agent
        if isinstance(generator, LocalGenerator):
            self.agent = ReSearchAgent(generator.policy, generator.engine, self.env, params, seed)
        else:
            self.agent = ServedReSearchAgent(generator, self.env, params, seed)

    def answer(self, questions: Seq[Question]) -> list[Prediction]:
        """See Agent.answer."""
        return self.agent.answer(questions)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


@dataclass
class _Row:
    """What one episode has cost so far, and whether its server failed."""

    dialogue: Dialogue
    sampled: int = 0
    given: int = 0
    uncounted: bool = False
    """Whether the last result is not counted yet: without a tokenizer only the server can."""
    read: int = 0
    """Tokens the server had read and written after the last turn."""
    error: str | None = None

    def count(self, text: Generation) -> None:
        """Add what a turn cost; the server's own count tells the length of the result before."""
        if self.uncounted and text.prompt_tokens is not None:
            self.given += max(0, text.prompt_tokens - self.read)
        self.uncounted = False
        tokens = text.tokens or _estimate(text)
        self.sampled += tokens
        self.read = (text.prompt_tokens or 0) + tokens


@dataclass(frozen=True)
class _Manner:
    """How a generator is asked in the protocol of an environment.

    Args:
        asked: what is asked; it tells of the tools itself where ``tools`` is set.
        prompt: in front of the response.
        protocol: of the environment.
        tools: whether the messages need not tell of the tools.
        roles: whether replies go over in messages of their own roles.
    """

    asked: Generator
    prompt: Prompt
    protocol: Protocol
    tools: bool = False
    roles: bool = True

    @classmethod
    def of(cls, generator: Generator, rows: ReSearchVectorEnv) -> _Manner:
        """Find out how; what a server cannot do is told once, and done otherwise."""
        prompt, protocol = rows.prompt, rows.protocol
        if (prompt.begins or protocol.begins) and not generator.continues:
            tell_once(
                f"the response begins with {prompt.begins or protocol.begins!r}, but the server "
                "does not let the model go on with a message that has begun: it begins by itself; "
                "use api: completions with a tokenizer, or dialect: vllm or sglang"
            )
        if not protocol.keeps_eos:
            return cls(generator, prompt, protocol)
        offering = generator.offering(prompt.tools) if prompt.tools else None
        roles = {piece.role or "user" for piece in protocol.pieces("")}
        keeps = offering is not None or all(map(generator.takes_role, roles))
        return cls(offering or generator, prompt, protocol, offering is not None, keeps)

    def begin(self, question: Question) -> Dialogue:
        """Begin the dialogue about a question."""
        prompt, goes_on = self.prompt, self.asked.continues
        messages = prompt.messages(question.text, tools_in_text=not self.tools)
        if messages is None:
            return OneMessage(prompt.text(question.text))
        begins = goes_on and not self.asked.opened(messages)
        first, later = (b if begins else "" for b in (prompt.begins, self.protocol.begins))
        if not self.protocol.keeps_eos:
            return OneMessage(list(messages), first)
        return SeparateMessages(messages, self.protocol, first, later, self.roles)

    def opened(self) -> Opened:
        """Return what is known to stand in front of the turns."""
        prompt, goes_on = self.prompt, self.asked.continues
        messages = prompt.messages("?", tools_in_text=not self.tools)
        if messages is None:
            return Opened(prompt.opened)
        both = (prompt.begins if goes_on else "", self.protocol.begins if goes_on else "")
        first, later = (self.asked.opened(messages) or begins for begins in both)
        return Opened(first, later if self.protocol.keeps_eos else "")


def _estimate(text: Generation) -> int:
    """Tokens of a turn whose server counts none; without any, an episode might never end."""
    if text.text:
        _say_estimated()
    return max(1, len(text.text) // _CHARS_A_TOKEN)


@cache
def _say_estimated() -> None:
    log.warning(
        "the server tells no token counts: those of turns are estimated, one for %d characters, "
        "for budgets and in what is reported",
        _CHARS_A_TOKEN,
    )


class ServedReSearchAgent(Agent):
    """Plays the environment with a generator: a turn, its result, the next turn.

    All questions take their next turn together: one call of the generator and one search a round.
    The token budget is that of training as far as tokens can be counted: a result is counted with
    the generator's tokenizer, or else when the server tells how much it has read the next time.

    In a protocol of tags the model goes on with its own text. In one of chat messages each turn and
    each result is a message; tool calls that the server reads itself are written back into the
    text of the turn, and go back to the server as calls.

    Args:
        generator: writes the turns.
        env: ``gym.make_vec("ReSearch-v0", autoreset_mode="Disabled", ...)``.
        params: how to sample; greedy when None. ``max_result_tokens`` needs a generator that
            counts.
        seed: of sampled texts; each question and turn has its own seed made from it.
        on_step: hears every step as it is made.
    """

    def __init__(
        self,
        generator: Generator,
        env: gym.vector.VectorEnv[Any, Any, Any],
        params: SamplingParams | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> None:
        self.generator, self.env, self.seed = generator, env, seed
        self.params = params or SamplingParams(temperature=0.0)
        self.on_step = on_step or (lambda question, step: None)
        self._manner: _Manner | None = None
        self._counts = generator.count("") is not None
        if self.params.max_result_tokens is not None and not self._counts:
            raise ValueError(
                "max_result_tokens must meet a generator that counts tokens, got one without a "
                "tokenizer; give the generator `tokenizer`, or leave max_result_tokens out"
            )

    def answer(self, questions: Seq[Question]) -> list[Prediction]:
        """See Agent.answer; the questions' gold answers are used for nothing but the reward.

        Raises:
            ModelUnavailable: the model's server is gone.
            RetrieverUnavailable: a search failed, and the environment does not observe failures.
        """
        if not questions:
            return []
        began = time.perf_counter()
        rows = vector_rows(self.env)
        rows.resize(len(questions))
        manner = self._manner = self._manner or _Manner.of(self.generator, rows)
        self.env.reset(options={"questions": list(questions), "opened": manner.opened()})
        played = [_Row(manner.begin(question)) for question in questions]
        while turn := [
            row for row, one in enumerate(played) if self._runs(one, rows.episodes[row])
        ]:
            self._round(turn, played, rows.episodes)
        share = (time.perf_counter() - began) / len(questions)
        return [_told(one, e, share) for one, e in zip(played, rows.episodes, strict=True)]

    @staticmethod
    def _runs(row: _Row, episode: Episode) -> bool:
        return row.error is None and not episode.done

    def _round(self, turn: list[int], played: list[_Row], episodes: list[Episode]) -> None:
        """One turn of every episode that runs."""
        texts = self._write(turn, played, episodes)
        actions: list[str | None] = [None] * len(played)
        for row, text in zip(turn, texts, strict=True):
            if text.error is not None:
                played[row].error = text.error
                continue
            episode = episodes[row]
            played[row].count(text)
            opened = opened_of(episode, len(episode.turns))
            said = turn_text(text, episode.rules.protocol, opened)
            played[row].dialogue.take(said, text)
            self.on_step(episode.question, Message("model", opened + said))
            if text.finish == "length" or self._left(played[row]) < 0:
                episode.cut("length", said)
            else:
                actions[row] = said
        replies = self.env.step(actions)[0]
        for row, action in enumerate(actions):
            if action is not None and not episodes[row].done:
                reply = self._fitted(episodes[row], replies[row], played[row])
                played[row].dialogue.give(reply)
                self.on_step(episodes[row].question, Message("environment", reply))
                if self._left(played[row]) < 1:
                    episodes[row].cut("length")

    def _write(
        self, turn: list[int], played: list[_Row], episodes: list[Episode]
    ) -> list[Generation]:
        """The next turn of each, within what its budget has left."""
        assert self._manner is not None, "answer() has found it out"
        sampling = self.params.speaking(self._manner.protocol)
        inputs = [played[row].dialogue.shown for row in turn]
        params = [replace(sampling, max_response_tokens=self._left(played[row])) for row in turn]
        asked = [(episodes[row].question.id, len(episodes[row].turns)) for row in turn]
        seeds = [seed_of(self.seed, *one) for one in asked]
        return self._manner.asked.generate(inputs, params, seeds)

    def _left(self, row: _Row) -> int:
        return self.params.max_response_tokens - row.sampled - row.given

    def _fitted(self, episode: Episode, reply: str, row: _Row) -> str:
        """Count a result, with fewer passages where it is over the cap."""
        count = self.generator.count(reply)
        if count is None:
            row.uncounted = True
            return reply
        cap = self.params.max_result_tokens
        shown = episode.shown
        while cap is not None and count > cap and shown:
            shown -= 1
            reply = episode.keep_passages(shown)
            count = self.generator.count(reply) or 0
        row.given += count
        return reply


def _told(row: _Row, episode: Episode, seconds: float) -> Prediction:
    reward = episode.reward
    results = episode.results if row.error else episode.results[: len(episode.turns) - 1]
    return Prediction(
        question=episode.question,
        text="" if reward is None else reward.prediction,
        steps=alternate(whole_turns(episode), results),
        queries=tuple(episode.queries),
        passages=tuple(map(tuple, episode.passages)),
        finish_reason="error" if row.error is not None else episode.finish_reason,
        format_error=None if reward is None else reward.format_error,
        sampled_tokens=row.sampled,
        result_tokens=row.given,
        seconds=seconds,
        error=row.error,
        protocol=episode.rules.protocol,
    )

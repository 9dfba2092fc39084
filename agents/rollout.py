"""Rollouts: the policy plays questions in an environment, and each play is scored.

The only place where text becomes ids and ids become text. Each prompt and each result is encoded
once; what the policy wrote is decoded for the environment and never encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, TypeAlias

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import Engine, Rollout, SamplingParams, Sequence
from research_rl.envs import Episode, Question, ReSearchVectorEnv

Watch: TypeAlias = Callable[[int, int, int], None]
"""Told of rollouts that go on: how many are over, of how many, and the tokens that were sampled.

The first call has no rollout over, the last one has all. Tokens count when their turn ends.
"""


def collect_rollouts(
    questions: Seq[Question],
    env: gym.vector.VectorEnv[Any, Any, Any],
    policy: LMPolicy,
    engine: Engine,
    params: SamplingParams,
    seeds: Seq[int] | None = None,
    watch: Watch | None = None,
) -> list[Rollout]:
    """Play one episode a question; repeat a question to get a group.

    Args:
        questions: what is asked, one for each rollout.
        env: ``gym.make_vec("ReSearch-v0", autoreset_mode="Disabled", ...)``; it is resized.
        policy: encodes and decodes.
        engine: samples from the policy.
        params: how.
        seeds: one for each rollout; equal seeds and questions give equal rollouts.
        watch: is told how far they are, after each step of the environment.

    Returns:
        One rollout for each question, in order. One that ran out of tokens has the reward 0 and
        the finish reason "length".

    Raises:
        ValueError: the environment is another one, or would begin new episodes by itself; or the
            model has too few positions for a prompt and the budget behind it.
        RetrieverUnavailable: a search failed, and the environment does not observe failures.
    """
    rows = vector_rows(env)
    if not questions:
        return []
    rows.resize(len(questions))
    opened = policy.opened(rows.prompt, rows.protocol)
    env.reset(options={"questions": list(questions), "opened": opened})
    params = params.speaking(rows.protocol)
    texts = dict.fromkeys(q.text for q in questions)
    prompts = {text: policy.encode_prompt(rows.prompt, text) for text in texts}
    longest = max(questions, key=lambda q: len(prompts[q.text]))
    _check_length(policy, longest, len(prompts[longest.text]), params.max_response_tokens)
    play = Play(env, rows.episodes, policy, params.max_result_tokens, watch)
    play.tell()
    sequences = engine.run([prompts[q.text] for q in questions], params, play.on_stop, seeds)
    rollouts = [play.rollout(row, sequence) for row, sequence in enumerate(sequences)]
    play.tell()
    return rollouts


class Play:
    """Hands finished turns to the environment and its replies back.

    Args:
        env: reset.
        episodes: its rows.
        policy: encodes and decodes.
        max_result_tokens: cap of a result; None for none.
        watch: is told how far the rollouts are.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        episodes: list[Episode],
        policy: LMPolicy,
        max_result_tokens: int | None,
        watch: Watch | None = None,
    ) -> None:
        self._env, self._episodes = env, episodes
        self._policy, self._cap = policy, max_result_tokens
        self._heard = [-1] * len(episodes)
        """Where the last turn that the environment heard begins, for each row."""
        self._watch, self._tokens = watch, 0

    def tell(self) -> None:
        """Say how far the rollouts are, if somebody watches."""
        if self._watch is not None:
            over = sum(episode.done for episode in self._episodes)
            self._watch(over, len(self._episodes), self._tokens)

    def on_stop(self, stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        """Play one step of the rows that ended a turn; see OnStop."""
        actions: list[str | None] = [None] * len(self._episodes)
        for row, sequence in stopped:
            actions[row] = self._policy.decode(sequence.turn_ids)
            self._heard[row] = sequence.turn_start
            self._tokens += len(sequence.turn_ids)
        replies = self._env.step(actions)[0]
        self.tell()
        return [
            None
            if self._episodes[row].done
            else self._encode(self._episodes[row], replies[row], sequence.turn_ids)
            for row, sequence in stopped
        ]

    def _encode(self, episode: Episode, reply: str, turn: list[int]) -> list[int]:
        """Ids of a result, with fewer passages where it is over the cap."""
        protocol = episode.rules.protocol
        ids = self._policy.encode_reply(protocol, reply, turn)
        if self._cap is None:
            return ids
        shown = episode.shown
        while len(ids) > self._cap and shown:
            shown -= 1
            shorter = episode.keep_passages(shown)
            if shorter != reply:
                reply, ids = shorter, self._policy.encode_reply(protocol, shorter, turn)
        return ids

    def rollout(self, row: int, sequence: Sequence) -> Rollout:
        """Put a sequence that is over together with its episode, closing that if need be."""
        episode = self._episodes[row]
        turns = list(episode.turns)
        if not episode.done:
            assert sequence.finish == "length", sequence.finish
            cut_off = ""
            if self._heard[row] != sequence.turn_start:
                turns.append(cut_off := self._policy.decode(sequence.turn_ids))
                self._tokens += len(sequence.turn_ids)
            episode.cut("length", cut_off)
        assert episode.reward is not None
        return Rollout(
            question=episode.question,
            sequence=sequence,
            reward=episode.reward,
            turns=turns,
            results=episode.results[: len(turns) - 1],  # one behind the last turn was not read
            finish_reason=episode.finish_reason,
            queries=list(episode.queries),
            passage_ids=[[p.id for p in found] for found in episode.passages],
            protocol=episode.rules.protocol,
            opened=episode.opened,
        )


def _check_length(policy: LMPolicy, question: Question, prompt: int, budget: int) -> None:
    """Refuse rollouts that could outgrow the model's positions, where it would write nonsense."""
    if policy.max_length is not None and prompt + budget > policy.max_length:
        room = policy.max_length - prompt
        ways = f"lower max_response_tokens to {room} or less" if room > 0 else "leave it out"
        raise ValueError(
            f"prompt and max_response_tokens must fit in the model's {policy.max_length} positions "
            f"together, got {prompt} + {budget} with question {question.id!r}; {ways}, or use a "
            "model with a longer context"
        )


def vector_rows(env: gym.vector.VectorEnv[Any, Any, Any]) -> ReSearchVectorEnv:
    """The batched environment inside, refused if it does not wait at the end of an episode."""
    rows = env.unwrapped
    if not isinstance(rows, ReSearchVectorEnv):
        raise ValueError(
            f"env must be the batched ReSearch environment, got {type(rows).__name__}; make it "
            'with gym.make_vec("ReSearch-v0", num_envs=1, autoreset_mode="Disabled")'
        )
    if rows.autoreset_mode is not AutoresetMode.DISABLED:
        raise ValueError(
            f"env must wait at the end of an episode, got autoreset_mode "
            f'{rows.autoreset_mode.value!r}; make it with autoreset_mode="Disabled"'
        )
    return rows

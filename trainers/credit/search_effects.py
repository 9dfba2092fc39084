"""Effects of single searches: a rollout is played again with one result removed or exchanged.

Two measures, each for one result at a time. ``logprob_effects`` compares the probability of what
the policy wrote afterwards, with and without the result; it costs a forward pass for each.
``reward_effect`` forks the environment there, samples new endings with and without the result and
compares their rewards; it costs rollouts, and is what the first measure approximates.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any, Literal, get_args

import gymnasium as gym
import torch

from research_rl.agents import Engine, Play, Rollout, SamplingParams
from research_rl.agents.policy import LMPolicy
from research_rl.envs import Passage, ReSearchVectorEnv
from research_rl.envs.protocols import BUDGET_USED, RESEARCH, Found, Protocol, Search

Target = Literal["rest", "answer"]


@dataclass(frozen=True)
class SearchEffect:
    """The effect of one result on a rollout.

    Args:
        turn: number of the turn that searched.
        query: of that search, "" if there was none.
        logprob: increase of the log-prob of what followed, through the result, in nats.
        reward: increase of the mean reward of new endings; None if none were sampled.
    """

    turn: int
    query: str
    logprob: float
    reward: float | None = None


def emptied(result: str, protocol: Protocol = RESEARCH, queries: Seq[str] = ("",)) -> str:
    """Return a reply without its passages; a note on the used-up budget is kept.

    Args:
        result: as it was read.
        protocol: it is written in.
        queries: that it answers.
    """
    note = BUDGET_USED if BUDGET_USED in result else ""
    return protocol.reply([Found(query) for query in queries or ("",)], note)


def logprob_effects(
    rollouts: Seq[Rollout],
    policy: LMPolicy,
    instead: Seq[Seq[str]] | None = None,
    target: Target = "rest",
    micro_batch_tokens: int = 16384,
) -> list[list[float]]:
    """Return for each result of each rollout by how many nats it raised what followed.

    ``log p(y | result) - log p(y | block in its place)``, where y is what the policy wrote later.
    Thoughts are part of y: a query alone is no evidence, because it copies the thought before it.

    Args:
        rollouts: with their tokens.
        policy: that wrote them; called without gradients, at temperature 1.
        instead: one block for each result; None is the same block without passages.
        target: rest is all later turns of the policy, answer its last turn only.
        micro_batch_tokens: tokens of one forward pass, padding included.

    Raises:
        ValueError: target is unknown, or a rollout's results are not those of its tokens.
    """
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")
    texts: list[_Text] = []
    for number, rollout in enumerate(rollouts):
        blocks = emptied_results(rollout) if instead is None else instead[number]
        texts += _texts(rollout, _encoded(rollout, blocks, policy), target)
    scores = _scores(texts, policy, micro_batch_tokens)
    found: list[list[float]] = []
    for rollout in rollouts:
        pairs = [(next(scores), next(scores)) for _ in rollout.results]
        found.append([real - changed for real, changed in pairs])
    return found


def _queries_of(rollout: Rollout, turn: int) -> list[str]:
    action = rollout.protocol.parse(rollout.whole_turns[turn])
    return list(action.queries) if isinstance(action, Search) else []


def emptied_results(rollout: Rollout) -> list[str]:
    """Return each result of a rollout without its passages, see ``emptied``."""
    return [
        emptied(result, rollout.protocol, _queries_of(rollout, turn))
        for turn, result in enumerate(rollout.results)
    ]


def _encoded(rollout: Rollout, blocks: Seq[str], policy: LMPolicy) -> list[list[int]]:
    """Ids of blocks in place of a rollout's results, each behind the turn that it answers."""
    found = []
    for (begin, _), block in zip(given_spans(rollout), blocks, strict=True):
        turn = rollout.sequence.response_ids[:begin]
        found.append(policy.encode_reply(rollout.protocol, block, turn))
    return found


@dataclass(frozen=True)
class _Text:
    """Token ids, and which of them are scored."""

    ids: list[int]
    scored: list[bool]


def _texts(rollout: Rollout, blocks: Seq[list[int]], target: Target) -> Iterator[_Text]:
    """Yield two texts for each result: as it was, and with the block in its place."""
    sequence = rollout.sequence
    spans = given_spans(rollout)
    final = spans[-1][1] if spans else 0
    for (begin, end), block in zip(spans, blocks, strict=True):
        start = final if target == "answer" else end
        tail = [own and i >= start for i, own in enumerate(sequence.loss_mask)][end:]
        for middle in (sequence.response_ids[begin:end], block):
            head = sequence.prompt_ids + sequence.response_ids[:begin] + middle
            yield _Text(head + sequence.response_ids[end:], [False] * len(head) + tail)


def given_spans(rollout: Rollout) -> list[tuple[int, int]]:
    """Return where each result begins and ends in the rollout's response ids.

    Raises:
        ValueError: there are more or fewer than the rollout has results.
    """
    spans, position = [], 0
    for own, run in groupby(rollout.sequence.loss_mask):
        length = len(list(run))
        if not own:
            spans.append((position, position + length))
        position += length
    if len(spans) != len(rollout.results):
        raise ValueError(
            f"a rollout must have one run of given tokens for each result, got {len(spans)} for "
            f"{len(rollout.results)}; a record without tokens cannot be replayed"
        )
    return spans


@torch.no_grad()
def _scores(texts: Seq[_Text], policy: LMPolicy, tokens: int) -> Iterator[float]:
    """Yield the sum of the log-probs of each text's scored tokens, in order."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    found = [0.0] * len(texts)
    for part in _parts(order, [len(text.ids) for text in texts], tokens):
        rows = [torch.tensor(texts[i].ids) for i in part]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        real = (torch.arange(ids.shape[1]) < lengths[:, None]).to(policy.device)
        logprobs = policy(ids.to(policy.device), real, entropy=False).logprobs.cpu()
        for i, row in zip(part, logprobs, strict=True):
            scored = torch.tensor(texts[i].scored[1:])  # column t is about token t + 1
            found[i] = float(row[: len(scored)][scored].sum())
    return iter(found)


def _parts(order: Seq[int], lengths: Seq[int], tokens: int) -> Iterator[list[int]]:
    part: list[int] = []
    for i in order:
        if part and (len(part) + 1) * lengths[i] > tokens:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def reward_effect(
    rollout: Rollout,
    turn: int,
    env: gym.vector.VectorEnv[Any, Any, Any],
    policy: LMPolicy,
    engine: Engine,
    params: SamplingParams,
    seeds: Seq[int],
    instead: Seq[Passage] = (),
) -> float:
    """Return by how much a result raises the mean reward of new endings sampled behind it.

    The environment is forked behind the search. In half of the forks the result is replaced; both
    halves use the same seeds.

    Args:
        rollout: is played again up to the turn; retrieval is deterministic, so nothing changes.
        turn: number of a turn that searched.
        env: the batched environment that played it; it is not changed.
        policy: encodes and decodes.
        engine: samples from the policy.
        params: of sampling; the token budget is that of the whole rollout.
        seeds: one for each pair of endings.
        instead: passages that replace those that were found; without any, the result is empty.

    Raises:
        ValueError: there is no such turn, it found nothing, or no seed is given.
    """
    if not 0 <= turn < len(rollout.results):
        raise ValueError(f"turn must be below {len(rollout.results)}, got {turn}")
    if not seeds:
        raise ValueError("seeds must hold at least one number, got none")
    base = _replayed(rollout, turn, env)
    forks = base.fork([0] * 2 * len(seeds))
    for episode in forks.episodes[len(seeds) :]:
        episode.show_instead(instead)
    begin, end = given_spans(rollout)[turn]
    sequence = rollout.sequence
    answered = sequence.response_ids[:begin]
    changed = policy.encode_reply(rollout.protocol, forks.episodes[-1].results[-1], answered)
    prompts = [
        sequence.prompt_ids + sequence.response_ids[:begin] + shown
        for shown in (sequence.response_ids[begin:end], changed)
        for _ in seeds
    ]
    spent = begin + max(end - begin, len(changed))
    left = max(1, params.max_response_tokens - spent)
    rest = replace(params.speaking(rollout.protocol), max_response_tokens=left)
    play = Play(forks, forks.episodes, policy, params.max_result_tokens)
    endings = engine.run(prompts, rest, play.on_stop, [*seeds, *seeds])
    values = [play.rollout(row, ending).reward.value for row, ending in enumerate(endings)]
    return fmean(values[: len(seeds)]) - fmean(values[len(seeds) :])


def _replayed(
    rollout: Rollout, turn: int, env: gym.vector.VectorEnv[Any, Any, Any]
) -> ReSearchVectorEnv:
    """Return an environment of one row in which the turn has just been played."""
    rows = env.unwrapped
    assert isinstance(rows, ReSearchVectorEnv), type(rows).__name__
    base = rows.fork([0])
    base.reset(options={"questions": [rollout.question], "opened": rollout.opened})
    found = -1
    for action in rollout.turns[: turn + 1]:
        found = base.episodes[0].num_searches
        base.step([action])
    if base.episodes[0].done or base.episodes[0].num_searches == found:
        raise ValueError(f"turn {turn} must have found something, got {rollout.turns[turn]!r}")
    return base


def search_effects(
    rollout: Rollout,
    policy: LMPolicy,
    env: gym.vector.VectorEnv[Any, Any, Any] | None = None,
    engine: Engine | None = None,
    params: SamplingParams | None = None,
    seeds: Seq[int] = (),
) -> list[SearchEffect]:
    """Return the effect of each search of a rollout, by log-prob and, if possible, by reward.

    Args:
        rollout: with its tokens.
        policy: that wrote it.
        env: the batched environment that played it. If env, engine, params and seeds are given,
            new endings are sampled.
        engine: samples from the policy.
        params: of sampling.
        seeds: one for each pair of endings of each search.
    """
    effects = []
    for turn, logprob in enumerate(logprob_effects([rollout], policy)[0]):
        query = "\n".join(_queries_of(rollout, turn))
        effects.append(SearchEffect(turn, query, logprob))
    if env is None or engine is None or params is None or not seeds:
        return effects
    return [
        replace(e, reward=reward_effect(rollout, e.turn, env, policy, engine, params, seeds))
        if e.query
        else e
        for e in effects
    ]

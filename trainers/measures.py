"""Measures of rollouts and their means, the same in training, validation and test.

Each question weighs the same, whatever batch or rank it was in: two rollouts with an F1 of 1 and 0
have the mean 0.5 also where they come from different ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from research_rl.agents import Rollout
from research_rl.envs.protocols import CallProtocol, Search
from research_rl.envs.questions import known_hops
from research_rl.trainers.data import QuestionDataModule, Role
from research_rl.trainers.distributed import gather

Measures = dict[str, float]

SOLVED = 0.99
"""F1 from which a rollout counts as right."""
CEILING = "em_ceiling"
"""What ``research data audit`` said of the questions; it stands beside EM."""
HOPS = "hops"
"""The entry that groups questions; it is not averaged."""


def measure(rollout: Rollout) -> Measures:
    """Return the numbers of one rollout.

    ``reward``, ``f1``, ``em``; ``format`` (1 if the text has no format error); ``searches``
    (retrievals made); ``found_nothing`` (those that no passage matched);
    ``sampled_tokens`` (written by the policy) and ``response_tokens`` (results included);
    ``truncated`` (1 if the token budget was used up); ``overridden_searches`` (queries
    that were not searched, because a later ``<search>`` of the same turn replaced them);
    ``part_NAME``, what each term of the reward added, where it is a sum;
    ``wrong_calls`` (tool calls that could not be read), in protocols of tool calls; ``chain``
    (1 if the queries are exactly the question's gold chain) and ``hops``, each only if the
    question's metadata hold it.
    """
    question, reward, sequence = rollout.question, rollout.reward, rollout.sequence
    values: Measures = {
        "reward": reward.value,
        "f1": reward.f1,
        "em": reward.em,
        "format": float(reward.format_error is None),
        "searches": float(rollout.num_searches),
        "found_nothing": float(sum(not found for found in rollout.passage_ids)),
        "sampled_tokens": float(sum(sequence.loss_mask)),
        "response_tokens": float(len(sequence.response_ids)),
        "truncated": float(rollout.finish_reason == "length"),
        "overridden_searches": float(sum(map(rollout.protocol.overridden, rollout.turns))),
    }
    values |= {f"part_{name}": value for name, value in reward.parts.items()}
    if isinstance(rollout.protocol, CallProtocol):
        values["wrong_calls"] = float(_wrong_calls(rollout))
    if (chain := question.metadata.get("chain")) is not None:
        values["chain"] = float(_folded(rollout.queries) == _folded(chain))
    if (hops := known_hops(question.metadata.get("hops"))) is not None:
        values[HOPS] = float(hops)
    return values


def average(rows: Sequence[Measures], by_hop: Collection[str] | None = None) -> Measures:
    """Return the mean of each measure over the rows that have it.

    Args:
        rows: what ``measure`` returned.
        by_hop: measures that are also averaged by number of hops, as ``f1_2hop``; None is all.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("at least one rollout must be given to average, got none")
    means = _means(rows)
    for hops in sorted({row[HOPS] for row in rows if HOPS in row}):
        kind = _means([row for row in rows if row.get(HOPS) == hops])
        chosen = {name: x for name, x in kind.items() if by_hop is None or name in by_hop}
        means |= {f"{name}_{hops:g}hop": value for name, value in chosen.items()}
    return means


def summarize(rollouts: Iterable[Rollout], by_hop: Collection[str] | None = None) -> Measures:
    """Return the mean measures of rollouts, over all and by number of hops.

    Args:
        rollouts: at least one.
        by_hop: measures that are also averaged by number of hops, as ``f1_2hop``; None is all.

    Raises:
        ValueError: there is no rollout.
    """
    return average([measure(rollout) for rollout in rollouts], by_hop)


def means_of(
    rollouts: Iterable[Rollout],
    by_hop: Collection[str] | None = None,
    missing: Collection[str] | None = None,
) -> Measures:
    """Return ``summarize`` of the rollouts of all ranks; every rank must call it.

    Args:
        rollouts: of this rank.
        by_hop: as in ``summarize``.
        missing: ids of the questions that have no answer in the corpus; ``em_ceiling`` is then the
            share of the others, the EM that can be reached. None leaves it out.
    """
    rows = []
    for rollout in rollouts:
        rows.append(measure(rollout))
        if missing is not None:
            rows[-1][CEILING] = float(rollout.question.id not in missing)
    return average(gather(rows), by_hop)


def missing_answers(module: Any, role: Role) -> Collection[str] | None:
    """Return the ids of a role's questions that an audit found no answer to in the index.

    Args:
        module: a ReSearchModule in a trainer.
        role: val or test.

    Returns:
        None where no audit was made, or the questions are not from a QuestionDataModule.
    """
    data = getattr(module.trainer, "datamodule", None)
    if not isinstance(data, QuestionDataModule):
        return None
    return data.missing(role, module.env_config.index)


def prefixed(prefix: str, values: Mapping[str, float]) -> Measures:
    """Return the values with ``prefix/`` before their names, such as ``val/f1``."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def prediction_row(rollout: Rollout) -> dict[str, Any]:
    """Return the row that ``research predict`` writes about a rollout, ready for JSON.

    ``id``, ``question``, ``prediction``, ``answers``, ``em``, ``f1``, ``searches``,
    ``finish_reason`` and ``text``, which is the whole response, see ``transcript``.
    """
    row = rollout.to_row()
    return {
        "id": row["question_id"],
        **{name: row[name] for name in ("question", "prediction", "answers", "em", "f1")},
        "searches": rollout.num_searches,
        "finish_reason": row["finish_reason"],
        "text": transcript(rollout),
    }


def transcript(rollout: Rollout) -> str:
    """Return the response as one text: the first turn, its result, the second turn, and so on."""
    parts: list[str] = []
    for number, turn in enumerate(rollout.whole_turns):
        parts.append(turn)
        parts.extend(rollout.results[number : number + 1])
    return "".join(parts)


def _means(rows: Sequence[Measures]) -> Measures:
    names = {name: None for row in rows for name in row if name != HOPS}
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def _wrong_calls(rollout: Rollout) -> int:
    actions = map(rollout.protocol.parse, rollout.whole_turns)
    return sum(bool(e) for a in actions if isinstance(a, Search) for e in a.errors)


def _folded(queries: Iterable[str]) -> list[str]:
    return [" ".join(query.split()).casefold() for query in queries]

"""The signal check: says when an iteration gave a policy nothing to learn from, and why.

A reward that is the same in every rollout of a group gives no gradient where rollouts of a group
are compared. A run of which all groups are like that prints its progress, writes its checkpoints
and learns nothing. After each iteration this check counts what the rollouts and the update were,
and gives a verdict where it is plain::

    nothing to learn from: in none of 8 groups do two rewards differ (64 rollouts, reward 0.00);
    all 64 have the format error «no <answer> ... </answer>», for example «Paris is the capital».

It compares with fixed limits, not with the run's own past: a run that was ill from its first
iteration has no healthy past. ``CollapseGuard`` sees the other kind, a run that falls ill.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from research_rl.agents import Rollout
from research_rl.envs.rewards.terms import abstained
from research_rl.trainers.measures import SOLVED

_SHARE = 0.95  # of the rollouts, from which «nearly all» is said
_MISMATCH = 0.10  # share of sampled tokens whose probability is off by more than 5 %
_CORRECTED = 0.50  # the same where an importance correction weighs them
_STALE = 1e-3  # nats between sampler and learner from which servers may have old weights
_JUMP = 20.0  # times what the distance was before they were given new ones
_EXAMPLE = 160  # characters of an example
_FROZEN = "what is frozen (model.policy.freeze_embeddings, model.policy.lora)"


@dataclass(frozen=True)
class SignalVerdict:
    """One reason why an iteration taught nothing, or nothing right.

    Args:
        name: ``no_difference``, ``always_abstains``, ``same_format_error``, ``empty_searches``,
            ``out_of_tokens``, ``mismatch``, ``stale_servers`` or ``zero_gradient``.
        said: what was seen, with its counts.
        remedy: what helps.
    """

    name: str
    said: str
    remedy: str


@dataclass
class Tally:
    """Counts over the rollouts of one rank; those of several ranks can be added."""

    rollouts: int = 0
    groups: int = 0
    differing: int = 0
    """Groups in which two rollouts were paid differently."""
    solved: int = 0
    """Groups in which every rollout is right."""
    rewards: Counter[float] = field(default_factory=Counter)
    """How often each reward was paid, less its price."""
    answered: int = 0
    out_of_tokens: int = 0
    searches: int = 0
    found_nothing: int = 0
    """Searches with an empty query, or without a passage."""
    abstained: int = 0
    """Answers that say there is none."""
    unanswerable: int = 0
    """Rollouts of questions without an answer."""
    errors: Counter[str] = field(default_factory=Counter)
    """How often each format error was met."""
    examples: dict[str, str] = field(default_factory=dict)
    """A response with each of them, shortened."""

    def __add__(self, other: Tally) -> Tally:
        numbers = {
            name: value + getattr(other, name)
            for name, value in asdict(self).items()
            if isinstance(value, int | float)
        }
        return Tally(
            **numbers,
            rewards=self.rewards + other.rewards,
            errors=self.errors + other.errors,
            examples={**other.examples, **self.examples},
        )


def tally(rollouts: Sequence[Rollout], paid: Sequence[float] | None = None) -> Tally:
    """Return the counts of rollouts; those of one question are a group.

    Args:
        rollouts: of one rank.
        paid: what each has earned, less its price; None is its reward.
    """
    found = Tally()
    groups: dict[Hashable, list[tuple[Rollout, float]]] = defaultdict(list)
    earned = [one.reward.value for one in rollouts] if paid is None else paid
    for rollout, value in zip(rollouts, earned, strict=True):
        groups[rollout.question.id, rollout.question.text].append((rollout, value))
        found.rollouts += 1
        found.rewards[value] += 1
        found.answered += rollout.finish_reason == "answer"
        found.out_of_tokens += rollout.finish_reason == "length"
        found.searches += len(rollout.queries)
        found.abstained += abstained(rollout.reward.prediction)
        found.unanswerable += bool(rollout.question.metadata.get("unanswerable"))
        for query, passages in zip(rollout.queries, rollout.passage_ids, strict=False):
            found.found_nothing += not query.strip() or not passages
        if error := rollout.reward.format_error:
            found.errors[error] += 1
            found.examples.setdefault(error, shortened(rollout.turns[-1] if rollout.turns else ""))
    found.groups = len(groups)
    for group in groups.values():
        found.differing += len({value for _, value in group}) > 1
        found.solved += all(one.reward.f1 >= SOLVED for one, _ in group)
    return found


def shortened(text: str, size: int = _EXAMPLE) -> str:
    """Return a text on one line, its middle left out where it is longer than ``size``."""
    line = " ".join(text.split())
    half = size // 2
    return line if len(line) <= size else f"{line[:half]} … {line[-half:]}"


def verdicts(
    counts: Tally,
    metrics: Mapping[str, float],
    causes: Sequence[str] = (),
    corrected: bool = False,
    before: float | None = None,
    compares_groups: bool = True,
    credits_turns: bool = False,
) -> list[SignalVerdict]:
    """Return what keeps a policy from learning, the plainest first; empty where it can learn.

    Args:
        counts: of the rollouts of all ranks.
        metrics: of the update: ``grad_norm``, ``mismatch_mean`` (nats), ``mismatch_5pct`` (share),
            where they are known.
        causes: what in this run may set sampled and recomputed log-probs apart.
        corrected: whether the loss weighs sampled tokens by an importance correction.
        before: where servers sample: their ``mismatch_mean`` before they were given new weights.
        compares_groups: whether the learning rule compares the rollouts of a group with each other
            alone; one that does not learns from what tells groups apart, too.
        credits_turns: whether turns are paid for themselves. A policy may learn from that alone, so
            equal rewards are told only where the gradient is 0.
    """
    if not counts.rollouts:
        return []
    found = _of_abstaining(counts)
    if not found and not (credits_turns and metrics.get("grad_norm") != 0.0):
        found = _of_rewards(counts, compares_groups)
    found += [*_of_form(counts), *_of_searches(counts)]
    limit = _CORRECTED if corrected else _MISMATCH
    if metrics.get("mismatch_5pct", 0.0) > limit:
        found.append(_mismatch(metrics, causes, corrected))
    found += _of_servers(metrics.get("mismatch_mean", 0.0), before)
    if counts.solved < counts.groups:
        found += _of_gradient(
            metrics,
            f"see the other verdicts; if there is none, look at {_FROZEN} and at the algorithm's "
            "masks",
        )
    return found


def verdicts_of_imitation(metrics: Mapping[str, float]) -> list[SignalVerdict]:
    """Return what keeps a policy from imitating; empty where it can.

    Demonstrations may all be paid the same, and whoever wrote them is not the policy: their
    rewards, form and searches say nothing of it. Only the update does.

    Args:
        metrics: of the update: ``grad_norm``, where it is known.
    """
    return _of_gradient(
        metrics, f"look at {_FROZEN}, and whether the demonstrations have turns of the policy"
    )


def _of_gradient(metrics: Mapping[str, float], remedy: str) -> list[SignalVerdict]:
    if metrics.get("grad_norm") != 0.0:
        return []
    said = "the gradient of the update is 0: the weights stay as they are"
    return [SignalVerdict("zero_gradient", said, remedy)]


def _of_abstaining(counts: Tally) -> list[SignalVerdict]:
    """Nearly every answer is that there is none, where most questions have one."""
    if counts.abstained < _SHARE * counts.rollouts or 2 * counts.unanswerable > counts.rollouts:
        return []
    return [
        SignalVerdict(
            "always_abstains",
            f"{counts.abstained} of {counts.rollouts} rollouts say that there is no answer; "
            f"{counts.unanswerable} are of questions that have none",
            "where right answers are rare, 'unknown' pays more than trying: begin with "
            "demonstrations that answer right more often, ask fewer questions without an answer, "
            "or charge wrong abstention (the term abstain, docs/rewards.md)",
        )
    ]


def _of_rewards(counts: Tally, compares_groups: bool) -> list[SignalVerdict]:
    """Equal rewards where they are compared; not where all is right, which is no illness."""
    # nothing is compared within a group of one
    within = compares_groups and counts.groups < counts.rollouts
    if (counts.differing if within else len(counts.rewards) > 1) or counts.solved == counts.groups:
        return []
    seen = f"in none of {counts.groups} groups do two rewards differ"
    if not compares_groups:
        seen = f"no two rewards differ in all {counts.groups} groups"
    mean = sum(value * times for value, times in counts.rewards.items()) / counts.rollouts
    return [
        SignalVerdict(
            "no_difference",
            f"{seen} ({counts.rollouts} rollouts, mean reward {mean:.2f}, {counts.answered} "
            f"answered, {counts.searches} searches)",
            "a policy that never does it right cannot be rewarded for it: show it the form first "
            "(research collect, then research sft), ask easier questions, or try another prompt, "
            "a larger group or a reward that pays parts",
        )
    ]


def _of_form(counts: Tally) -> list[SignalVerdict]:
    found = []
    if counts.out_of_tokens >= _SHARE * counts.rollouts and not counts.answered:
        found.append(
            SignalVerdict(
                "out_of_tokens",
                f"{counts.out_of_tokens} of {counts.rollouts} rollouts ended because their tokens "
                "ran out, and none answered",
                "raise model.sampling.max_response_tokens, lower model.env.top_k or "
                "model.sampling.max_result_tokens, or show the policy how to end (research sft)",
            )
        )
    if not counts.errors:
        return found
    error, times = counts.errors.most_common(1)[0]
    if times == counts.rollouts:
        found.append(
            SignalVerdict(
                "same_format_error",
                f"all {times} rollouts have the format error «{error}», for example "
                f"«{counts.examples.get(error, '')}»",
                "the policy does not know the form, or the prompt asks for another one: look at a "
                "rollout, compare model.env.prompt with what the model was trained on, or show it "
                "the form (research collect, then research sft)",
            )
        )
    return found


def _of_searches(counts: Tally) -> list[SignalVerdict]:
    if not counts.searches or counts.found_nothing < counts.searches:
        return []
    return [
        SignalVerdict(
            "empty_searches",
            f"all {counts.searches} searches had an empty query or found no passage",
            "ask the index by hand (research index search); an index in another language or of "
            "other documents finds nothing, and a policy that writes empty queries needs to be "
            "shown searches (research sft)",
        )
    ]


def _mismatch(
    metrics: Mapping[str, float], causes: Sequence[str], corrected: bool
) -> SignalVerdict:
    likely = f"; likely here: {'; '.join(causes)}" if causes else ""
    correction = "" if corrected else ", set model.algorithm.correction.kind: truncate"
    return SignalVerdict(
        "mismatch",
        f"{metrics['mismatch_5pct']:.0%} of the sampled tokens have another probability in the "
        f"learner, by more than 5 % (mean distance {metrics.get('mismatch_mean', 0.0):.3f} nats)",
        f"sampler and learner must compute the same{likely}. Sample in float32 or float16 "
        f"(model.engine.dtype){correction}, or compare the two engines (docs/engine.md)",
    )


def _of_servers(now: float, before: float | None) -> list[SignalVerdict]:
    """A server that answered 200 to a reload and kept old weights, or a part of them."""
    if before is None or now <= max(_STALE, _JUMP * before):
        return []
    return [
        SignalVerdict(
            "stale_servers",
            f"since the servers were given new weights, a sampled token is {now:.2g} nats from the "
            f"learner's, before that it was {before:.2g}",
            "a server kept a part of its old weights, though it said otherwise: one that packs its "
            "output head (vLLM on a CPU, with tied embeddings) keeps the old head. Serve another "
            "build, send adapters (engine.weights: lora), or sample in this process; an importance "
            "correction only bounds the harm",
        )
    ]


def message(found: Sequence[SignalVerdict], iteration: int) -> str:
    """Return verdicts as text for a terminal: what was seen, and what helps, a line each."""
    head = f"signal check, iteration {iteration}: "
    lines = [f"{one.name}: {one.said}\n    what helps: {one.remedy}" for one in found]
    return head + "\n  ".join(["there is little or nothing to learn from", *lines])


def as_row(found: Sequence[SignalVerdict], iteration: int) -> dict[str, Any]:
    """Return verdicts as a row of JSON."""
    return {"iteration": iteration, "verdicts": [asdict(one) for one in found]}

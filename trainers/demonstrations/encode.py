"""Demonstrations as token ids: what a policy would have sampled to write the same text."""

from __future__ import annotations

import logging
from dataclasses import replace
from unicodedata import normalize

from research_rl.agents import Rollout, Sequence, TextOnly
from research_rl.agents.policy import LMPolicy
from research_rl.envs import Prompt
from research_rl.envs.protocols import PROTOCOLS, Opened, Protocol

log = logging.getLogger(__name__)
_FRAME = 64
"""More tokens than stand around a turn or a result."""
_NAMED = 3
_SHORTER = (
    "show fewer or shorter passages a search when you collect them (model.env.top_k), or take a "
    "model with a longer context"
)


def in_protocol(rollout: Rollout, protocol: Protocol) -> Rollout:
    """Return a demonstration in the protocol in which a policy is to imitate it.

    A row names its protocol. One that only a class has is read as ReSearch's, and is taken for the
    run's own here.

    Raises:
        ValueError: it is in another one.
    """
    if rollout.protocol == protocol:
        return rollout
    if rollout.protocol_name == protocol.name and protocol.name not in PROTOCOLS:
        return replace(rollout, protocol=protocol)
    raise ValueError(
        f"a demonstration must be in the run's protocol {protocol.name}, got "
        f"{rollout.protocol_name} for question {rollout.question.id!r}; set --model.env.protocol "
        f"{rollout.protocol_name}, or collect demonstrations anew"
    )


def as_sampled(rollout: Rollout, policy: LMPolicy, prompt: Prompt) -> Rollout:
    """Return a rollout with the ids of this policy's tokenizer and a loss mask on its turns.

    Ids that the same tokenizer gave are kept: what was sampled is never encoded again. Text is
    encoded piece by piece, as an episode is: the prompt, each turn, each result; the last turn of a
    finished episode, and each message of a chat, ends in the end of sequence. Turns carry
    loss_mask True, all else False; the log-probs are 0, for nobody sampled.

    Args:
        rollout: with ids or with text alone.
        policy: encodes. What its chat template opens of a turn is no part of the turn.
        prompt: what stands in front of the response.

    Raises:
        ValueError: the demonstration is longer than the model's positions; names its question.
    """
    made = _as_ids(rollout, policy, prompt)
    length = _length(made)
    if policy.max_length is not None and length > policy.max_length:
        raise ValueError(
            f"a demonstration must fit in the model's {policy.max_length} positions, got {length} "
            f"tokens of question {rollout.question.id!r}; {_SHORTER}"
        )
    return made


def demonstrations_that_fit(
    rollouts: list[Rollout], policy: LMPolicy, prompt: Prompt, protocol: Protocol
) -> list[Rollout]:
    """Return the demonstrations that the model has room for; a warning counts and names the others.

    Args:
        rollouts: as they were read.
        policy: encodes.
        prompt: what stands in front of each response.
        protocol: of the run.

    Raises:
        ValueError: none is left, or one cannot be imitated: it is in another protocol, for
            instance.
    """
    if policy.max_length is None:
        return rollouts
    over: dict[int, int] = {}
    frame = len(policy.encode_prompt(prompt, ""))
    for number, rollout in enumerate(rollouts):
        if frame + _most_tokens(rollout) <= policy.max_length:
            continue
        made = _as_ids(in_protocol(rollout, protocol), policy, prompt)
        if (length := _length(made)) > policy.max_length:
            over[number] = length
    if not over:
        return rollouts
    longest = sorted(over, key=lambda number: -over[number])
    named = [f"{rollouts[n].question.id} ({over[n]} tokens)" for n in longest[:_NAMED]]
    named += [f"and {len(over) - _NAMED} more"] if len(over) > _NAMED else []
    if len(over) == len(rollouts):
        raise ValueError(
            f"data.train must hold a demonstration that fits in the model's {policy.max_length} "
            f"positions, got {len(over)} longer ones: {', '.join(named)}; {_SHORTER}"
        )
    log.warning(
        "data.train: %d of %d demonstrations are left out, for they have more tokens than the "
        "model's %d positions: %s",
        len(over),
        len(rollouts),
        policy.max_length,
        ", ".join(named),
    )
    return [rollout for number, rollout in enumerate(rollouts) if number not in over]


def _most_tokens(rollout: Rollout) -> int:
    """More tokens than a demonstration can have behind the frame of its prompt.

    No tokenizer makes more than one of a byte, once a text is normalised.
    """
    texts = [rollout.question.text, *rollout.whole_turns, *rollout.results]
    size = sum(max(_bytes(text), _bytes(normalize("NFKC", text))) for text in texts)
    return max(size + _FRAME * len(texts), _length(rollout))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _length(rollout: Rollout) -> int:
    """Tokens of a rollout; 0 where there is text alone."""
    kept = rollout.sequence
    return 0 if isinstance(kept, TextOnly) else len(kept.prompt_ids) + len(kept.response_ids)


def _as_ids(rollout: Rollout, policy: LMPolicy, prompt: Prompt) -> Rollout:
    """The rollout with ids of this policy's tokenizer, however many they are."""
    rollout = _checked_behind(rollout, policy.opened(prompt, rollout.protocol))
    prompt_ids = policy.encode_prompt(prompt, rollout.question.text)
    kept = rollout.sequence
    if isinstance(kept, TextOnly) or not _is_of(kept, rollout, policy, prompt_ids):
        kept = _encoded(rollout, policy, prompt_ids)
    return replace(rollout, sequence=kept)


def _behind(rollout: Rollout, opened: Opened) -> Rollout:
    """The rollout as if a prompt had opened something else of its turns."""
    if rollout.opened == opened:
        return rollout
    before = [opened.before(n, rollout.protocol.keeps_eos) for n in range(len(rollout.turns))]
    written = zip(before, rollout.whole_turns, strict=True)
    return replace(rollout, opened=opened, turns=[_without(b, turn) for b, turn in written])


def _checked_behind(rollout: Rollout, opened: Opened) -> Rollout:
    """The same, refused where a turn then asks for something else than it did.

    Raises:
        ValueError: a thought that the chat template opens is never closed, for instance.
    """
    behind = _behind(rollout, opened)
    parse = rollout.protocol.parse
    for number, (was, now) in enumerate(
        zip(rollout.whole_turns, behind.whole_turns, strict=True), 1
    ):
        if parse(was) != parse(now):
            raise ValueError(
                f"turn {number} of a demonstration must mean the same behind what the prompt "
                f"opens, {opened.before(number - 1, rollout.protocol.keeps_eos)!r}, got "
                f"{now[:80]!r} for question {rollout.question.id!r}; collect demonstrations with "
                "this prompt and chat template, or set policy.chat_template"
            )
    return behind


def _without(opened: str, turn: str) -> str:
    """A turn without its beginning, where that is opened for it already."""
    if turn.startswith(opened):
        return turn.removeprefix(opened)
    if opened.rstrip().endswith("<think>") and turn.lstrip().startswith("<think>"):
        return turn.lstrip().removeprefix("<think>").removeprefix("\n" * opened.endswith("\n"))
    return turn


def _is_of(sequence: Sequence, rollout: Rollout, policy: LMPolicy, prompt_ids: list[int]) -> bool:
    """Whether ids are this tokenizer's for this prompt and this text."""
    own = [i for i, mask in zip(sequence.response_ids, sequence.loss_mask, strict=True) if mask]
    if sequence.prompt_ids != prompt_ids or not own or max(own) >= len(policy.tokenizer):
        return False
    return policy.decode(own).startswith(rollout.turns[0])


def _encoded(rollout: Rollout, policy: LMPolicy, prompt_ids: list[int]) -> Sequence:
    sequence = Sequence(list(prompt_ids), finish="eos")
    last = len(rollout.turns) - 1
    for number, turn in enumerate(rollout.turns):
        ids = policy.encode_turn(rollout.protocol, turn)
        whole = number < last or rollout.finish_reason != "length"
        if whole and rollout.protocol.writes_eos(turn, last=number == last):
            ids = [*ids, policy.end_of_message(rollout.protocol)]
        for token in ids:
            sequence.append_sampled(token, 0.0)
        for result in rollout.results[number : number + 1]:
            sequence.append_given(policy.encode_reply(rollout.protocol, result, ids))
    return sequence

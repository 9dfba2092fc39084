"""The questions of a run, measured before its first step: those that are too long, or unreadable.

A prompt of 3,800 tokens among a thousand short ones would end the run when its turn comes, and each
time that it is resumed. A question of words that the model reads as ``<unk>`` would be asked as if
nothing were wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from research_rl.agents import vector_rows
from research_rl.agents.policy import LMPolicy, quoted_words
from research_rl.envs import Prompt, Question

log = logging.getLogger(__name__)
_TOKENS_A_BYTE = 4
"""More than any tokenizer makes of a byte: a text that fits by this is not tokenised."""
_NAMED = 3
_EXAMPLES = 2
_SERVERS = "the rollout servers'"


def prompts_that_fit(
    questions: Sequence[Question], role: str, module: Any, most: int | None
) -> list[Question]:
    """Return the questions whose prompt leaves room for a response; warn of unreadable ones.

    Args:
        questions: of a run.
        role: train, val or test.
        module: a ReSearchModule that is set up: its policy, environment and token budgets.
        most: ``data.max_prompt_tokens``: longer prompts are left out, and counted in a warning.
            None leaves out none.

    Raises:
        ValueError: a prompt that is not left out is too long for the model's positions beside the
            response; or none is left. It names the longest, the limit and what to do.
    """
    policy, prompt = module.policy, vector_rows(module.env).prompt
    warn_of_unknown_words(questions, f"data.{role}", policy)
    option = "sampling" if role == "train" else "validation_sampling"
    budget: int = getattr(module, option).max_response_tokens
    positions, whose = _positions(module)
    room = None if positions is None else positions - budget
    limits = [limit for limit in (room, most) if limit is not None]
    if not limits:
        return list(questions)
    sizes = {} if min(limits) < 1 else _long_prompts(questions, policy, prompt, min(limits))
    if room is not None and room < 1:
        raise ValueError(
            f"model.{option}.max_response_tokens must be below {whose} {positions} positions, "
            f"which hold the prompt too, got {budget}; lower it{_longer(whose)}"
        )
    left_out = {row for row, size in sizes.items() if most is not None and size > most}
    _check_room(questions, role, {r: n for r, n in sizes.items() if r not in left_out}, module)
    if len(left_out) == len(questions):
        raise ValueError(
            f"data.max_prompt_tokens must leave at least one question of data.{role}, got {most}: "
            f"the shortest of {len(questions)} prompts has {min(sizes.values())} tokens; raise it"
        )
    if left_out:
        log.warning(
            "data.%s: %d of %d questions are left out, for their prompts have more than "
            "data.max_prompt_tokens %d tokens: %s",
            role,
            len(left_out),
            len(questions),
            most,
            _named(questions, {row: sizes[row] for row in left_out}),
        )
    return [question for row, question in enumerate(questions) if row not in left_out]


def warn_of_unknown_words(questions: Sequence[Question], source: str, policy: LMPolicy) -> None:
    """Warn of questions with words that the model cannot read: how many, and two of them.

    Args:
        questions: as they are asked.
        source: where they come from, for the message.
        policy: whose tokenizer is asked.
    """
    found = [(one, words) for one in questions if (words := policy.unknown_words.of(one.text))]
    if not found:
        return
    shown = "; ".join(f"{one.id}: {quoted_words(words)}" for one, words in found[:_EXAMPLES])
    share = len(found) / len(questions)
    log.warning(
        "%s: %d of %d questions (%s) have words that the model reads as %s, for its tokenizer has "
        "no token for them: it can neither search for them nor answer with them (%s); take a model "
        "whose tokenizer can write them",
        source,
        len(found),
        len(questions),
        f"{share:.0%}" if share >= 0.01 else "under 1%",
        policy.unknown_words.token,
        shown,
    )


def _check_room(
    questions: Sequence[Question], role: str, sizes: dict[int, int], module: Any
) -> None:
    """Refuse prompts that are too long for the model's positions beside a response."""
    option = "sampling" if role == "train" else "validation_sampling"
    budget = getattr(module, option).max_response_tokens
    positions, whose = _positions(module)
    if positions is None:
        return
    over = {row: size for row, size in sizes.items() if size > positions - budget}
    if not over:
        return
    lower = positions - max(over.values())
    raise ValueError(
        f"prompts of data.{role} must leave {budget} of {whose} {positions} positions for the "
        f"response (model.{option}.max_response_tokens), so have at most {positions - budget} "
        f"tokens, got {len(over)} of {len(questions)} longer ones: {_named(questions, over)}; set "
        f"data.max_prompt_tokens to {positions - budget} to leave them out"
        + (f", lower model.{option}.max_response_tokens to {lower} or less" if lower > 0 else "")
        + _longer(whose)
    )


def _positions(module: Any) -> tuple[int | None, str]:
    """The positions of the model, or of the servers that sample if they have fewer; and whose."""
    own: int | None = module.policy.max_length
    served = module.engine.room() if hasattr(module, "engine") else None
    if served is not None and (own is None or served < own):
        return served, _SERVERS
    return own, "the model's"


def _longer(whose: str) -> str:
    if whose == _SERVERS:
        return ", or start the servers with a larger --max-model-len"
    return ", or take a model with a longer context"


def _long_prompts(
    questions: Sequence[Question], policy: LMPolicy, prompt: Prompt, limit: int
) -> dict[int, int]:
    """Return the rows whose prompt is longer than ``limit``, with its tokens.

    Where a question is so short that its prompt cannot be too long, it is not tokenised.
    """
    frame = len(policy.encode_prompt(prompt, ""))
    found = {}
    for row, question in enumerate(questions):
        if frame + _TOKENS_A_BYTE * len(question.text.encode("utf-8", "replace")) <= limit:
            continue
        size = len(policy.encode_prompt(prompt, question.text))
        if size > limit:
            found[row] = size
    return found


def _named(questions: Sequence[Question], sizes: dict[int, int]) -> str:
    """The longest of them by id: "q7 (3800 tokens), q2 (2100), and 4 more"."""
    longest = sorted(sizes, key=lambda row: -sizes[row])
    shown = [f"{questions[row].id} ({sizes[row]} tokens)" for row in longest[:_NAMED]]
    more = [f"and {len(longest) - _NAMED} more"] if len(longest) > _NAMED else []
    return ", ".join([*shown, *more])

"""Protocols and prompts by name, and what is meant by ``protocol=`` and ``prompt=``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from research_rl.envs.protocols.base import Protocol
from research_rl.envs.protocols.calls import CallProtocol
from research_rl.envs.protocols.dialects import (
    O2,
    RESEARCH,
    AutoRefine,
    Hermes,
    Llama3,
    Qwen3Coder,
    R1Searcher,
    ReCall,
    SearchR1,
    ZeroSearch,
)
from research_rl.envs.protocols.prompts import (
    Prompt,
    PromptChoice,
    no_plain_prompt,
    opened_by,
    prompt_file,
    prompt_parts,
    read_prompt,
)
from research_rl.envs.system import did_you_mean

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        RESEARCH,
        SearchR1(),
        ZeroSearch(),
        AutoRefine(),
        R1Searcher(),
        O2(),
        Hermes(),
        ReCall(),
        Qwen3Coder(),
        Llama3(),
    )
}
"""The dialects, by name."""


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Return the dialect of this name, or the protocol itself.

    Raises:
        ValueError: no dialect has this name.
        TypeError: neither a name nor a protocol, a class of one for instance.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if not isinstance(protocol, str):
        raise TypeError(_not_a_protocol(protocol))
    if protocol in PROTOCOLS:
        return PROTOCOLS[protocol]
    hint = did_you_mean(protocol, list(PROTOCOLS), quoted=True) or ""
    raise ValueError(
        f"protocol must be one of {', '.join(PROTOCOLS)}, or a Protocol (in a config: class_path), "
        f"got {protocol!r}{hint}"
    )


def _not_a_protocol(given: object) -> str:
    wanted = f"protocol must be one of {', '.join(PROTOCOLS)}, or a Protocol, got "
    if isinstance(given, type):
        made = f"; make one: {given.__name__}()" if issubclass(given, Protocol) else ""
        return f"{wanted}the class {given.__name__}{made}"
    if isinstance(given, Mapping):
        return (
            f"{wanted}a {type(given).__name__}; give the object itself: class_path and init_args "
            "are read in configs of `research` alone"
        )
    return f"{wanted}{given!r}, a {type(given).__name__}"


def get_prompt(prompt: PromptChoice, protocol: str | Protocol = RESEARCH) -> Prompt:
    """Return the prompt that is meant.

    >>> get_prompt({"system": "Answer briefly.", "user": "Q: {prompt}"}).messages("Who?")[1]
    {'role': 'user', 'content': 'Q: Who?'}

    Args:
        prompt: ``base`` and ``instruct`` are the protocol's own prompts, for base models and for
            chat models. A mapping is a chat, also without a system message; without ``user`` the
            user says the question alone; ``begins`` is what the response begins with, the
            protocol's own beginning unless it is given. ``{about}`` is the protocol's prompt for
            documents of another kind. A file is text, or YAML or JSON with the mapping.
        protocol: whose rules the prompt tells. With one of tool calls each prompt is a chat, and
            tells of the tool too, unless ``tools`` is false in the mapping or it is a Prompt.

    Raises:
        ValueError: it does not say where the question goes, has other keys, or is plain text for
            a protocol whose replies are chat messages.
    """
    speaks = get_protocol(protocol)
    if isinstance(prompt, Prompt):
        if speaks.keeps_eos and not prompt.chat:
            raise no_plain_prompt(speaks.name)
        return prompt
    if isinstance(prompt, Mapping):
        parts = prompt_parts(prompt)
        if parts.prompt is None:
            return speaks.prompt(bool(parts.chat), parts.about)
        begins = speaks.begins if parts.begins is None else parts.begins
        begun = replace(parts.prompt, begins=begins)
        return _told(begun, speaks) if parts.tools else begun
    if prompt in ("base", "instruct"):
        return speaks.prompt(prompt == "instruct" or speaks.keeps_eos)
    told = spelled_out(prompt)
    if told != prompt:
        return get_prompt(told, speaks)
    begins = "" if opened_by(prompt) else speaks.begins
    return _told(Prompt(None, prompt, begins=begins), speaks)


def spelled_out(prompt: PromptChoice) -> PromptChoice:
    """Return what a prompt's file says, as if it stood in its place; all else as it is.

    Raises:
        ValueError: the file holds something else than a prompt.
    """
    if not isinstance(prompt, str) or prompt in ("base", "instruct"):
        return prompt
    file = prompt_file(prompt)
    if file is None:
        return prompt
    found = read_prompt(file)
    return found.user if isinstance(found, Prompt) else spelled_out(found)


def _told(prompt: Prompt, protocol: Protocol) -> Prompt:
    """The prompt as a chat that tells of the tool, where the protocol calls tools."""
    if not protocol.keeps_eos:
        return prompt
    chat = replace(prompt, chat=True)
    return protocol.with_tools(chat) if isinstance(protocol, CallProtocol) else chat


def prompt_about(about: str, chat: bool = True, protocol: str | Protocol = RESEARCH) -> Prompt:
    """Return a prompt that says what is searched.

    >>> "over the manuals of Acme." in prompt_about("the manuals of Acme").system
    True

    Args:
        about: what the documents are; it completes ``a search tool over ...``.
        chat: rules as a system message and the question as the user's; False is one text, for base
            models.
        protocol: whose rules are told.

    Raises:
        ValueError: ``about`` is empty.
    """
    return get_prompt({"about": about, "chat": chat}, protocol)

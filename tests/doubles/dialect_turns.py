"""What the tests of dialects share: hostile texts, passages, and turns of ours in each dialect."""

from __future__ import annotations

from research_rl.envs.protocols import PROTOCOLS, Found, Protocol
from research_rl.envs.types import Passage

TAGS = (
    *("<think>", "</think>", "<search>", "</search>", "<result>", "</result>"),
    *("<answer>", "</answer>", "<information>", "</information>", "<documents>", "</documents>"),
    *("<refine>", "</refine>", "<query>", "</query>", "<learnings>", "</learnings>"),
    *("<|begin_of_query|>", "<|end_of_query|>", "<|begin_of_documents|>", "<|end_of_documents|>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<function=search>", "</function>", "<parameter=query>", "</parameter>"),
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
)
"""The tags of every dialect, and control tokens of chat models."""
NAMES = tuple(PROTOCOLS)
"""All dialects."""
SEVERAL = tuple(name for name in NAMES if PROTOCOLS[name].max_queries != 1)
"""The dialects that may search for several things in a turn."""
CALLS = ("hermes", "recall", "qwen3_coder", "llama3")
"""The dialects of tool calls."""
PAIR = (Passage("1", "A\nfirst"), Passage("2", "B\nsecond"))
"""Two passages, of a title and a body each."""


def opened(protocol: Protocol, turn: int = 0) -> str:
    """What is opened of a turn where no chat template opens more."""
    return protocol.begins if protocol.keeps_eos or turn == 0 else ""


def searching(name: str, *queries: str, turn: int = 0) -> str:
    """A turn of good form that searches."""
    protocol = PROTOCOLS[name]
    return protocol.search(*queries, thought="t", opened=opened(protocol, turn))


def overfull(name: str, *queries: str) -> str:
    """A turn that searches for more than its dialect takes, which no writer writes."""
    one = searching(name, "QUERY")
    block = "<query>QUERY</query>\n"
    if block not in one:
        block = PROTOCOLS[name].search("QUERY")
    between = "" if block.endswith("\n") else "\n"
    return one.replace(block, between.join(block.replace("QUERY", query) for query in queries))


def answering(name: str, text: str, turn: int = 0) -> str:
    """A turn of good form that answers."""
    protocol = PROTOCOLS[name]
    return protocol.answer(text, thought="t", opened=opened(protocol, turn))


def reply(name: str, *contents: str) -> str:
    """What is read behind one query that found passages."""
    passages = [Passage(str(number), text) for number, text in enumerate(contents)]
    return PROTOCOLS[name].reply([Found("q", passages)])

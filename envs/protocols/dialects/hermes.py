"""``hermes``: JSON calls between tags, as Hermes, Qwen2.5 and Qwen3 write them.

::

    <tool_call>
    {"name": "search", "arguments": {"query": "boss of Bakset"}}
    </tool_call>

Several calls may stand in one message. Layout: the chat templates of NousResearch's Hermes 2 Pro
and of Qwen2.5.
"""

from __future__ import annotations

import json

from research_rl.envs.protocols.calls import Call, CallProtocol, loaded

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class Hermes(CallProtocol):
    """JSON objects with ``name`` and ``arguments`` between ``<tool_call>`` tags."""

    name = "hermes"

    def calls(self, text: str) -> list[Call]:
        """See CallProtocol."""
        found: list[Call] = []
        begin = text.find(OPENING)
        while begin >= 0:
            inner = begin + len(OPENING)
            end = text.find(CLOSING, inner)
            if end < 0:
                return [*found, self.call(begin, len(text), None, "arguments", closed=False)]
            found.append(self._read(begin, end + len(CLOSING), text[inner:end]))
            begin = text.find(OPENING, end + len(CLOSING))
        return found

    def _read(self, begin: int, end: int, inner: str) -> Call:
        told, error = loaded(inner.strip())
        return Call(begin, end, "", error) if error else self.call(begin, end, told, "arguments")

    def written(self, query: str) -> str:
        """See CallProtocol."""
        call = {"name": self.tool, "arguments": {"query": query}}
        return f"{OPENING}\n{json.dumps(call, ensure_ascii=False)}\n{CLOSING}"

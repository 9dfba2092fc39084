"""``llama3``: a message that is one JSON object, as Llama 3.1 and 3.2 write their calls.

::

    {"name": "search", "parameters": {"query": "boss of Bakset"}}

A message holds one call. Both ``<|eot_id|>`` and ``<|eom_id|>`` end a message; the generation
config of these models names them. Layout: the chat template of Llama 3.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from research_rl.envs.protocols.calls import Call, CallProtocol, loaded

_PYTHON = "<|python_tag|>"  # some models write it in front of a call
_BEGINS = re.compile(r'\{\s*"name"')


class Llama3(CallProtocol):
    """One JSON object with ``name`` and ``parameters``, and nothing else in the message."""

    name = "llama3"
    max_queries = 1

    def calls(self, text: str) -> list[Call]:
        """See CallProtocol."""
        stripped = text.strip()
        begin = len(text) - len(text.lstrip())
        inner = stripped.removeprefix(_PYTHON).strip()
        if not inner.startswith("{"):
            return []
        end = begin + len(stripped)
        told, error = loaded(inner)
        if error:
            return [Call(begin, end, "", error)] if _BEGINS.match(inner) else []
        if "name" not in told:
            return []
        return [self.call(begin, end, told, "parameters")]

    def message(self, text: str, calls: Sequence[tuple[str, str]]) -> str:
        """See CallProtocol; a message is one call behind its thought, and nothing else."""
        end = text.rfind(self.thought[1])
        thought = text[: end + len(self.thought[1])] if end >= 0 else ""
        return super().message(thought, calls[:1])

    def wrong(self, name: str, arguments: str) -> str:
        """See CallProtocol."""
        return f'{{"name": {json.dumps(name)}, "parameters": {arguments.strip() or "{}"}}}'

    def written(self, query: str) -> str:
        """See CallProtocol."""
        call = {"name": self.tool, "parameters": {"query": query}}
        return json.dumps(call, ensure_ascii=False)

"""``qwen3_coder``: calls in XML, as Qwen3-Coder and Qwen3.5 write them.

::

    <tool_call>
    <function=search>
    <parameter=query>
    boss of Bakset
    </parameter>
    </function>
    </tool_call>

Layout: the chat template of Qwen3-Coder.
"""

from __future__ import annotations

import json
from typing import Any

from research_rl.envs.protocols.boxes import all_tagged, unreadable
from research_rl.envs.protocols.calls import Call, loaded
from research_rl.envs.protocols.dialects.hermes import Hermes

_FUNCTION = ("<function=", "</function>")
_PARAMETER = ("<parameter=", "</parameter>")


class Qwen3Coder(Hermes):
    """Functions and parameters as XML tags between ``<tool_call>`` tags."""

    name = "qwen3_coder"

    def _read(self, begin: int, end: int, inner: str) -> Call:
        text = inner.strip()
        if not (text.startswith(_FUNCTION[0]) and text.endswith(_FUNCTION[1])):
            wanted = "<function=search> ... </function>"
            return Call(begin, end, "", f"a call must be {wanted}, with <parameter=query> in it")
        function = text.removeprefix(_FUNCTION[0]).removesuffix(_FUNCTION[1])
        name, _, body = function.partition(">")
        written = [p.partition(">") for p in all_tagged(body, *_PARAMETER)]
        given = {key.strip(): value.strip() for key, _, value in written}
        told = {"name": name.strip(), "parameters": given}
        return self.call(begin, end, told, "parameters")

    def wrong(self, name: str, arguments: str) -> str:
        """See CallProtocol."""
        given, told = loaded(arguments)[0], ""
        for key, value in given.items() if isinstance(given, dict) else ():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            told += f"<parameter={key}>\n{text}\n</parameter>\n"
        inner = f"<function={name}>\n{told or arguments}\n</function>"
        return f"<tool_call>\n{self.escape(inner)}\n</tool_call>"

    def wrong_arguments(self, given: Any, arguments: str) -> str:
        """See CallProtocol."""
        names = ", ".join(f"<parameter={name[:40]}>" for name in [*given][:4])
        return f"{self.tool} takes <parameter=query>text</parameter>, got {names or 'none'}"

    def written(self, query: str) -> str:
        """See CallProtocol; the inner tags are escaped too."""
        query = unreadable(query, (*_FUNCTION, *_PARAMETER))
        return (
            f"<tool_call>\n<function={self.tool}>\n<parameter=query>\n{query}\n</parameter>\n"
            "</function>\n</tool_call>"
        )

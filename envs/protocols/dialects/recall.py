r"""``recall``: hermes' calls as the agents of ReCall write them: thoughts, and a boxed answer.

Each message of the policy begins in a thought, which the prompt opens. All results of a message are
one message of the user; each repeats its call::

    <tool_response>{"name": "wikipedia_search", "arguments": {"query": "boss of Bakset"}}
    result:
    ...
    </tool_response>

Layout: repository Agent-RL/ReCall, branch main, src/verl/workers/rollout. The repeated call is
written anew from its query.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from research_rl.envs.protocols.actions import Found, Piece
from research_rl.envs.protocols.boxes import all_tagged
from research_rl.envs.protocols.dialects.hermes import Hermes

_FOUND = "result: \n"


class ReCall(Hermes):
    r"""See Hermes; the answer must stand in a ``\boxed{}``."""

    name = "recall"
    tool = "wikipedia_search"
    begins = "<think>"
    boxed = True
    needs_thought = True

    def reply(self, found: Sequence[Found], note: str = "", escape: bool = True) -> str:
        """Return one block for each call, each behind the call that it answers."""
        texts = []
        for number, one in enumerate(found, 1):
            call = {"name": self.tool, "arguments": {"query": one.query}}
            text = "\n\n".join(self._texts_of(one, note * (number == len(found)), escape))
            told = f"{_FOUND}{text}" if one.passages else text
            head = self.escape(json.dumps(call, ensure_ascii=False))
            opening, closing = self.result_tags
            texts.append(f"{opening}{head}\n{told}\n{closing}\n")
        return "".join(texts)

    def pieces(self, reply: str) -> tuple[Piece, ...]:
        """Return one message of the user."""
        return (Piece(reply, role="user"),)

    def results(self, reply: str) -> list[str]:
        """See CallProtocol."""
        opening, closing = self.result_tags
        blocks = all_tagged(reply, opening, f"\n{closing}")
        return [block.partition("\n")[2].removeprefix(_FOUND) for block in blocks] or [reply]

r"""``research``: the tags of ReSearch (arXiv 2503.19470), the default.

::

    <think> I need the boss. </think> <search> boss of Bakset </search> <result>
    boss of Bakset
    the boss of Bakset is Domlor .
    </result> <think> So it is Domlor. </think> <answer> It is \boxed{Domlor} </answer>
"""

from __future__ import annotations

from collections.abc import Sequence

from research_rl.envs.protocols.actions import Found
from research_rl.envs.protocols.prompts import BASE, INSTRUCT, Prompt
from research_rl.envs.protocols.tags import TagProtocol
from research_rl.envs.types import Passage


class ReSearchProtocol(TagProtocol):
    """ReSearch's tags and its two prompts; see TagProtocol."""

    name = "research"

    def prompt(self, chat: bool = True, about: str | None = None) -> Prompt:
        """Return a prompt of the paper, or one about other documents than Wikipedia's."""
        if about is None:
            return INSTRUCT if chat else BASE
        return super().prompt(chat, about)


RESEARCH = ReSearchProtocol()
STOP = RESEARCH.stops[0]
"""The stop string of a turn."""
parse_action = RESEARCH.parse
format_error = RESEARCH.format_error
parts = RESEARCH.parts
escape_tags = RESEARCH.escape
result_content = RESEARCH.content


def render_result(passages: Sequence[Passage], note: str = "", escape: bool = True) -> str:
    r"""Return the block that answers a search of ReSearch.

    >>> render_result([Passage("7", "boss of Bakset\nthe boss of Bakset is Domlor .")])
    ' <result>\nboss of Bakset\nthe boss of Bakset is Domlor .\n</result>'

    Args:
        passages: what was found, best first; their contents are joined by blank lines.
        note: a paragraph of the environment's own behind the passages.
        escape: make protocol tags inside the passages unreadable as tags.
    """
    return RESEARCH.reply([Found("", passages)], note, escape)

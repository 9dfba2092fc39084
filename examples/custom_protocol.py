"""A protocol of one's own: [find] and [/find] ask, [/say] ends the answer, which has no box.

From the folder of this file, against the built-in world:

    research fit --config quickstart --model.env.protocol.class_path custom_protocol.Brackets \\
        --trainer.max_steps 2
    research lint-reward default --protocol custom_protocol.Brackets
"""

from __future__ import annotations

from research_rl.envs.protocols import TagProtocol


class Brackets(TagProtocol):
    """Tags in brackets, documents as a numbered list."""

    tags = {  # noqa: RUF012 (what a class of TagProtocol says of its tags)
        "think": ("[think]", "[/think]"),
        "search": ("[find]", "[/find]"),
        "result": ("[found]", "[/found]"),
        "answer": ("[say]", "[/say]"),
    }
    stops = ("[/find]", "[/say]")
    boxed = False
    joiner = "\n"
    top_k = 3

    def document(self, number: int, contents: str) -> str:
        """Lay out one document as ``1. title: body``."""
        title, _, body = contents.partition("\n")
        return f"{number}. {title}: {body}"

"""The world as documents: a page of markdown for each person, in sentences of several forms."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from research_rl.envs.synthetic.world import RELATIONS, SyntheticWorld
from research_rl.envs.system import write_whole

_FORMS = (
    "The {relation} of {person} is {other}.",
    "{person}'s {relation} is {other}.",
    "{other} is the {relation} of {person}.",
)
_FILLERS = (
    "{person} gets up early and likes the sea.",
    "Nobody in town has met {person} before noon.",
    "{person} has lived here for a long time.",
    "On Sundays {person} reads and goes for a walk.",
)


def write_pages(
    world: SyntheticWorld, folder: Path, extra: Mapping[str, str] | None = None
) -> Path:
    """Write the facts of a world as pages, one a person, and return the folder.

    Each relation is a sentence of one of three forms, other sentences stand between them.

    Args:
        world: without aliases.
        folder: to write into; the pages of a split lie in a folder of its name.
        extra: file name -> text of further pages.

    Raises:
        ValueError: the world has aliases.
    """
    if world.aliases:
        raise ValueError("a world that is written as pages must have alias_share 0")
    for split, people in world.people.items():
        for person in people:
            rng = random.Random(f"page {world.seed} {person}")
            said = [
                rng.choice(_FORMS).format(
                    relation=relation, person=person, other=world.facts[relation, person]
                )
                for relation in rng.sample(RELATIONS, len(RELATIONS))
            ]
            for filler in rng.sample(_FILLERS, 2):
                said.insert(rng.randrange(len(said) + 1), filler.format(person=person))
            half = len(said) // 2
            text = f"# {person}\n\n{' '.join(said[:half])}\n\n{' '.join(said[half:])}\n"
            write_whole(folder / split / f"{person.lower()}.md", text)
    for name, text in (extra or {}).items():
        write_whole(folder / name, text)
    return folder

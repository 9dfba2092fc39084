"""The parser of ``research fit`` and its like; a config that it saves keeps its references.

A user writes ``save_dir: ${trainer.default_root_dir}``. The run needs the folder's name, but the
``config.yaml`` that it leaves should still say ``${...}``: then the folder can be renamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]
from pytorch_lightning.cli import LightningArgumentParser

from research_rl.trainers.checkpoint import with_references
from research_rl.trainers.usage import FitParser


@dataclass
class Unresolved:
    """What one command line said before its references were resolved.

    The command's parser sees it, and the parser of the subcommand, another object, saves the
    config. So both hold this.

    Args:
        text: YAML of the subcommand's section; "" where it refers to nothing.
    """

    text: str = ""


class ResearchParser(FitParser, LightningArgumentParser):
    """Lightning's parser with errors of one line and configs that keep their references."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unresolved = Unresolved()

    def dump(self, cfg: Any, *args: Any, **kwargs: Any) -> str:
        """Return the config as YAML; ``${...}`` stands where the user wrote it.

        jsonargparse dumps a config to resolve it, which is where the references are seen.
        """
        saves = "trainer.default_root_dir" in cfg and "subcommand" not in cfg
        if saves and "overwrite" in cfg:
            cfg = cfg.clone()
            cfg["overwrite"] = False  # said for one start alone
        text: str = super().dump(cfg, *args, **kwargs)
        if "subcommand" in cfg and "${" in text:
            section = yaml.safe_load(text).get(cfg["subcommand"], {})
            self.unresolved.text = yaml.safe_dump(section)
        elif saves and self.unresolved.text:
            return with_references(text, self.unresolved.text)
        return text

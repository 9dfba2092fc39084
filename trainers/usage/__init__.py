"""Help and usage errors of the commands that train and evaluate, told without torch.

``options.json`` holds every option of these commands, written by ``make options`` from the real
parsers. From it come the pages of ``--help``, and a parser that finds a misspelt option, a value
of the wrong type, an unknown config or a file that is not there before the libraries of the real
one are imported.

Read first: table.py, then skeleton.py
May import: envs, trainers.settings
"""

from __future__ import annotations

from research_rl.trainers.usage.pages import help_page, show_help
from research_rl.trainers.usage.skeleton import CHECKED, EvaluateParser, FitParser, check_usage
from research_rl.trainers.usage.table import (
    TABLE,
    Option,
    option_rows,
    options_of,
    write_table,
)
from research_rl.trainers.usage.there import check_there, no_rollouts
from research_rl.trainers.usage.usual import OPENINGS, Opening

__all__ = [
    "CHECKED",
    "OPENINGS",
    "TABLE",
    "EvaluateParser",
    "FitParser",
    "Opening",
    "Option",
    "check_there",
    "check_usage",
    "help_page",
    "no_rollouts",
    "option_rows",
    "options_of",
    "show_help",
    "write_table",
]

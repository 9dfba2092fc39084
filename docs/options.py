"""Renews the table of the options, from which --help and early usage errors are made.

python docs/options.py         # writes trainers/usage/options.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from doubles.entry_points import options_in_force

from research_rl.trainers.usage import CHECKED, write_table


def main() -> None:
    """Look into the real parsers and write what they take."""
    write_table({command: options_in_force(command) for command in CHECKED})


if __name__ == "__main__":
    main()

"""The parser of the commands: a usage error is one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

FAILED = 2
"""Exit status after a command line that makes no sense."""


class CommandLine(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of every option."""

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the reason."""
        self.exit(FAILED, f"research: error: {message}; see {self.prog} --help\n")

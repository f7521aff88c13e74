"""Command-line arguments whose errors look like all others."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """Bad arguments end with one line and exit code 2; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        print(f"hybridtron: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

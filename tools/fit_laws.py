"""Fit a scaling law to finished runs: the same as `hybridtron laws fit`."""

import sys
from collections.abc import Sequence

from hybridtron.cli.main import main as hybridtron


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `hybridtron laws fit` and return its exit code: 0 done, 2 bad input."""
    return hybridtron(["laws", "fit", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())

"""Convert, inspect and compare checkpoints: the same as `hybridtron convert`."""

import sys
from collections.abc import Sequence

from hybridtron.cli.main import main as hybridtron


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `hybridtron convert` and return its exit code: 0 done, 1 failed, 2 bad input."""
    return hybridtron(["convert", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())

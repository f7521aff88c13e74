"""Run an ablation or a scaling ladder: `python launch/ablate.py configs/ablations/NAME.yaml`.

The same as `hybridtron ablate`, from a checkout.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hybridtron.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))

"""Submit a training run: `python launch/submit.py CONFIG [key=value ...] --launch configs/launch/NAME.yaml`.

The same as `hybridtron launch`, from a checkout.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hybridtron.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["launch", *sys.argv[1:]]))

"""python -m hybridtron"""

import sys

from hybridtron.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

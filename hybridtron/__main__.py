"""python -m hybridtron, and the command `hybridtron`"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line. A Ctrl-C ends it with code 130, also while modules are imported."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        from hybridtron.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; in the middle of an import, where C++ code may not let it through, end the process."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

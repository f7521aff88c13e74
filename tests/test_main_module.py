"""What `python -m hybridtron` and the installed command do around the command line."""

import signal
import subprocess
import sys
import tomllib

from hybridtron.__main__ import main
from tests.conftest import ROOT, environment

# A Ctrl-C in the middle of an import, which C++ code above it would end with a message of its own.
INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)
            os.write(2, b"went on")
sys.meta_path.insert(0, Finder())
from hybridtron.__main__ import main
sys.argv[1:] = ["doctor"]
sys.exit(main())
"""


def test_a_ctrl_c_while_modules_are_imported_ends_with_130_and_no_word():
    for module in ("hybridtron.cli.main", "torch"):
        code = f"MODULE = {module!r}\n{INTERRUPTED}"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, preexec_fn=interruptible
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_installed_command_is_the_same():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["hybridtron"] == f"{main.__module__}:{main.__name__}"

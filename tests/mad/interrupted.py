"""Programs that a Ctrl-C reaches when they have told of their first setting, however fast a machine trains others."""

from __future__ import annotations

AFTER_FIRST_SETTING = """
import runpy, signal, sys

class Errors:
    def __init__(self, stream):
        self.stream, self.line = stream, ""

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.stream.write(text)
        self.line += text
        if self.line.endswith("\\n"):
            line, self.line = self.line, ""
            if "1/6" in line:
                signal.raise_signal(signal.SIGINT)
        return len(text)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.stderr = Errors(sys.stderr)
"""
VERB = AFTER_FIRST_SETTING + "from hybridtron.__main__ import main; sys.exit(main())"  # with its arguments
FILE = AFTER_FIRST_SETTING + "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"  # with its path

"""A hundred thousand rows are fitted in little memory."""

from __future__ import annotations

import subprocess
import sys

FIT = """
from pathlib import Path
from hybridtron.laws import Settings, fit
from tests.laws import planted

found = fit("parametric", planted.parametric_runs(41, 0.01, n=100_000), Settings(bootstrap=8, holdout=0))
assert found.intervals
# Not ru_maxrss, which begins with what the process that started this one held.
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def test_a_hundred_thousand_rows_stay_under_400_mb():
    done = subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 400e6

"""Whether other work on the machine disturbed a measurement by the clock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

LEAST_SHARE = 0.8  # of the clock's time that a process which only computes has a processor


@dataclass(frozen=True)
class Load:
    """`processor_share` is processor time over the clock's, of all threads; None on a GPU, whose work it leaves out.
    `load_average` is the larger one of the minutes before and at the end."""

    processor_share: float | None
    load_average: float
    cores: int

    @property
    def warning(self) -> str | None:
        """Return what makes the times doubtful; None for nothing."""
        reasons = []
        if self.processor_share is not None and self.processor_share < LEAST_SHARE:
            reasons.append(f"processor time was {self.processor_share:.0%} of the clock's")
        if self.load_average > self.cores:
            reasons.append(f"the load average was {self.load_average:.1f} on {self.cores} cores")
        return f"Other work ran beside this, so that times are too long: {', '.join(reasons)}." if reasons else None


class LoadMeter:
    """Watches the load from its creation on."""

    def __init__(self, on_cpu: bool) -> None:
        self.on_cpu = on_cpu
        self.average = os.getloadavg()[0]
        self.clock, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> Load:
        """Return the load since the meter was made."""
        share = (time.process_time() - self.processor) / max(time.perf_counter() - self.clock, 1e-9)
        average = max(self.average, os.getloadavg()[0])
        return Load(share if self.on_cpu else None, average, len(os.sched_getaffinity(0)))

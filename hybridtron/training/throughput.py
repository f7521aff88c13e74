"""Training speed: tokens and FLOPs per second, and model FLOPs utilization (MFU)."""

from __future__ import annotations

import time

from hybridtron.accounting.describe import describe
from hybridtron.accounting.peak import peak_flops_per_s
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.training.config import RunConfig


class Throughput:
    """Measure speed since the last reset, without the time of evaluations, callbacks and saves."""

    def __init__(self, config: RunConfig, parallel_context: ParallelContext) -> None:
        self.flops_per_token = describe(config.model, config.data.seq_len).flops_training / config.data.seq_len
        precision = config.precision
        multiplied = precision.parameter_format if precision.emulate else precision.format
        device_peak = peak_flops_per_s(parallel_context.device, multiplied)
        self.peak = device_peak * parallel_context.world_size if device_peak else None
        self.reset()
        self.start()

    def reset(self) -> None:
        """Forget what was measured."""
        self.seconds, self.tokens = 0.0, 0

    def start(self) -> None:
        """Start the clock."""
        self.since = time.perf_counter()

    def stop(self, tokens: int) -> None:
        """Stop the clock after training on this many tokens."""
        self.seconds += time.perf_counter() - self.since
        self.tokens += tokens

    def row(self) -> dict[str, float | None]:
        """Return tokens_per_s, flops_per_s and mfu; mfu is None where the device's peak is unknown."""
        rate = self.tokens / max(self.seconds, 1e-9)
        flops = rate * self.flops_per_token
        return {"tokens_per_s": rate, "flops_per_s": flops, "mfu": flops / self.peak if self.peak else None}

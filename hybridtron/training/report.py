"""The last lines of a run, from its summary: at its end, and again when a finished run is asked to go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.resume import Start


def say_summary(summary: Mapping[str, Any], folder: RunFolder, say: Callable[[str], None]) -> None:
    """Held-out bits per byte beside a bigram model's, the sample, and where the run and its plot lie."""
    bits, bigram = summary.get("valid_bits_per_byte"), summary.get("bigram_bits_per_byte")
    if bits is not None and bigram is not None:
        say(f"held-out text: {bits:.3f} bits per byte; a bigram model of the same training text: {bigram:.3f}")
    if summary.get("sample") is not None:
        say(f"sample after {summary.get('sample_prompt')!r}:\n{summary['sample']}")
    say(f"run folder {folder.path}, plot {folder.plot_file}")


def repeat_summary(folder: RunFolder, start: Start, config: RunConfig, say: Callable[[str], None]) -> bool:
    """Where no step of a finished run is left: say how it ended, change nothing, and return True."""
    if start.checkpoint is None or start.state.step < config.train.steps:
        return False
    summary = folder.read_summary(start.state.step)
    if not summary:
        return False
    say(f"finished at step {start.state.step}; no step is left to train")
    for change in start.changes:
        say(f"{change}: not used")
    say_summary(summary, folder, say)
    return True

"""The last lines of a run's output, from its summary: at its end, and when a finished run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hybridtron.data.bigram import LARGEST_VOCABULARY
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.effective_time import read_effective_time
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.resume import Start


def print_summary(
    summary: Mapping[str, Any], folder: RunFolder, print_line: Callable[[str], None], mttf_hours: float | None = None
) -> None:
    """Print held-out bits per byte beside a bigram model's, effective time, the sample, and the paths of the run."""
    bits, bigram = summary.get("valid_bits_per_byte"), summary.get("bigram_bits_per_byte")
    for line in _sources(summary):
        print_line(line)
    if bits is not None:
        absent = f"not fitted to vocabularies above {LARGEST_VOCABULARY:,} tokens, whose pairs are too rare"
        if summary.get("train_sources") or summary.get("valid_sources"):
            absent = "not fitted to several sources"
        compared = absent if bigram is None else f"{bigram:.3f}"
        print_line(f"held-out text: {bits:.3f} bits per byte; a bigram model of the same training text: {compared}")
    for line in read_effective_time(folder.path, mttf_hours).lines():
        print_line(line)
    if summary.get("sample") is not None:
        print_line(f"sample after {summary.get('sample_prompt')!r}:\n{summary['sample']}")
    print_line(f"run folder {folder.path}, plot {folder.plot_file}")


def _sources(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each source of a blend, and for each of several held-out sources."""
    used = summary.get("train_sources") or {}
    total = sum(source["samples"] for source in used.values())
    for name, source in used.items():
        share = f"{source['samples']:,} of {total:,} samples ({100 * source['samples'] / max(1, total):.1f} %)"
        yield f"training source {name}: {share}, {source['epochs']:.2f} epochs"
    for name, source in (summary.get("valid_sources") or {}).items():
        bits = source["bits_per_byte"]
        in_bits = "" if bits is None else f" = {bits:.3f} bits per byte"
        yield f"held-out source {name}: loss {source['loss']:.4f}{in_bits}"


def print_finished_run(folder: RunFolder, start: Start, config: RunConfig, print_line: Callable[[str], None]) -> bool:
    """Print how a finished run ended and return True; return False where steps are left to train."""
    if start.checkpoint is None or start.state.step < config.train.steps:
        return False
    summary = folder.read_summary(start.state.step)
    if not summary:
        return False
    print_line(f"finished at step {start.state.step}; no step is left to train")
    for change in start.changes:
        print_line(f"{change}: not used")
    print_summary(summary, folder, print_line, config.checkpoint.mttf_hours)
    return True

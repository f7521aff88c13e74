"""Measure what models cost to train and to generate with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron.api.configs import Config, read_model_config
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig

if TYPE_CHECKING:
    from hybridtron.efficiency.study import Efficiency


def measure_efficiency(
    configs: Sequence[Config],
    *overrides: str,
    lengths: Sequence[int] = (512, 2048),
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 5,
    by_block: bool = False,
    threads: int | None = None,
    out: Path | str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, setting: None,
) -> Efficiency:
    """Measure training, prefill, decoding and memory of several models on this machine: its GPU, or its CPU.

    Args:
        configs: YAML files, run folders, dicts or patterns; ratios are to the first. Layouts are ignored.
        overrides: `key=value` for all of them, such as `size=1b` or `precision.format=fp32`.
        lengths: tokens of context.
        batch_sizes: sequences at once.
        repeats: how often each is measured; models take turns.
        by_block: measure each distinct layer at full width by itself, and add up; for models that do not fit.
        threads: threads on a CPU; by default torch's.
        out: a new folder, or that of an earlier report, for the page, pictures, JSON and, by block, a table of layers.
        progress: called with repeats done, all repeats, and what is measured.

    Raises:
        UserError: one line for a config or a number that cannot be.
    """
    import torch

    from hybridtron.efficiency.report.tables import show_efficiency  # noqa: F401  # registers how it is printed
    from hybridtron.efficiency.study import measure_models
    from hybridtron.reporting.publish import require_usable
    from hybridtron.training.process.device import take_device

    _require_whole_numbers(lengths=lengths, batch_sizes=batch_sizes, repeats=(repeats,))
    if not isinstance(configs, Sequence) or isinstance(configs, str):
        configs = [configs]
    if out is not None:
        require_usable(Path(out))
    read = _named([read_model_config(config, *overrides) for config in configs])
    if len({config.precision.format for config in read}) > 1:
        raise UserError("precision.format: differs between the configs; expected one, such as precision.format=fp32")
    device = torch.device(take_device())
    done, total = 0, len(lengths) * len(batch_sizes) * repeats

    def advance(setting: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, setting)

    with _threads(threads):
        measured = measure_models(read, lengths, batch_sizes, repeats, by_block, device, advance)
    if out is not None:
        from hybridtron.efficiency.report.page import write_page

        write_page(measured, Path(out))
    return measured


def _require_whole_numbers(**given: Sequence[int]) -> None:
    """Raise UserError unless each is a list of whole numbers, all of at least 1, with one in it."""
    for name, values in given.items():
        if not isinstance(values, Sequence) or not values:
            raise UserError(f"{name} = {values!r}: expected a list of whole numbers of at least 1")
        for value in values:
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} = {value!r}: expected whole numbers of at least 1")


def _named(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Give configs of one name their patterns as names, or numbers where these are equal too."""
    if not configs:
        raise UserError("configs = []: expected at least one")
    names = [config.name for config in configs]
    for texts in (
        [str(config.model.parsed_pattern) for config in configs],
        [f"model {i + 1}" for i in range(len(names))],
    ):
        repeated = {name for name, number in Counter(names).items() if number > 1}
        names = [text if name in repeated else name for name, text in zip(names, texts, strict=True)]
    return [config.model_copy(update={"name": name}) for config, name in zip(configs, names, strict=True)]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use so many threads on a CPU inside the block."""
    import torch

    if count is not None and count < 1:
        raise UserError(f"threads = {count}: expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

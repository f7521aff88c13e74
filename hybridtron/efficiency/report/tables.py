"""What was measured, as tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from hybridtron.efficiency.measure import PHASES
from hybridtron.efficiency.study import Efficiency, Rates, Ratio
from hybridtron.reporting.numbers import byte_size, grouped, short_number, si
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import Column, Table

TITLES = {"train": "training", "prefill": "prefill", "decode": "decode"}


def rates(efficiency: Efficiency) -> Table:
    """Return tokens per second of each phase, below them the ratio to the first model, and the time of a token."""
    rows = efficiency.rates
    base = next(iter(efficiency.models))
    columns = [*_setting(rows)]
    for phase in PHASES:
        cells = [_rate(row, phase, row.model != base) for row in rows]
        columns.append(Column(f"{TITLES[phase]} tokens/s", cells, right=True))
    first = [f"{1000 * row.seconds['prefill']:,.1f} ms" for row in rows]
    next_token = [f"{1000 * row.seconds['decode']:,.2f} ms" for row in rows]
    columns += [Column("first token", first, right=True), Column("next token", next_token, right=True)]
    return Table(columns)


def floors(efficiency: Efficiency) -> Table:
    """Return which share of its time each phase needs at least at this machine's rates."""
    rows = efficiency.rates
    shares = [
        Column(TITLES[phase], [row.share_of_floor[phase] for row in rows], lambda value: f"{value:.0%}", right=True)
        for phase in PHASES
    ]
    return Table([*_setting(rows), *shares])


def memory(efficiency: Efficiency) -> Table:
    """Return bytes of state per sequence, measured and by formula, peak memory, and the largest batch."""
    rows = efficiency.rates
    columns = [
        *_setting(rows),
        Column("state", [row.state_bytes for row in rows], byte_size, right=True),
        Column("by formula", [row.state_bytes_formula for row in rows], byte_size, right=True),
        Column("largest batch", [row.largest_batch for row in rows], grouped, right=True),
    ]
    for title, name in (("peak of training", "train"), ("peak of generating", "generate")):
        peaks = [row.peak_bytes.get(name) for row in rows]
        if any(peak is not None for peak in peaks):
            columns.append(Column(title, peaks, byte_size, right=True))
    return Table(columns)


def models(efficiency: Efficiency) -> Table:
    """Return parameters and FLOPs per token of each model."""
    accounts = efficiency.models
    return Table(
        [
            Column("model", list(accounts)),
            Column("parameters", [each.total for each in accounts.values()], short_number, right=True),
            Column(
                "FLOPs per token, forward",
                [each.flops_forward / each.seq_len for each in accounts.values()],
                si,
                right=True,
            ),
            Column("pattern", [str(each.config.parsed_pattern) for each in accounts.values()]),
        ]
    )


def parts(efficiency: Efficiency) -> Table:
    """Return the milliseconds of each distinct layer."""
    rows = efficiency.parts
    columns = [
        Column("layer", [row.part for row in rows]),
        Column("tokens", [row.length for row in rows], grouped, right=True),
        Column("batch", [row.batch for row in rows], grouped, right=True),
        Column("parameters", [row.parameters for row in rows], short_number, right=True),
    ]
    columns += [
        Column(f"{TITLES[phase]} ms", [row.milliseconds[phase] for row in rows], lambda ms: f"{ms:.4g}", right=True)
        for phase in PHASES
    ]
    return Table([*columns, Column("state", [row.state_bytes for row in rows], byte_size, right=True)])


def _setting(rows: Iterable[Rates]) -> list[Column]:
    rows = list(rows)
    return [
        Column("model", [row.model for row in rows]),
        Column("tokens", [row.length for row in rows], grouped, right=True),
        Column("batch", [row.batch for row in rows], grouped, right=True),
    ]


def _rate(row: Rates, phase: str, with_ratio: bool) -> str:
    rate = grouped(row.tokens_per_s[phase]) if row.tokens_per_s[phase] >= 10 else f"{row.tokens_per_s[phase]:.2g}"
    return f"{rate}\n{_ratio(row.ratios[phase])}" if with_ratio else rate


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


@show.register(Efficiency)
def show_efficiency(efficiency: Efficiency, console: Console) -> None:
    """Print the machine and all tables."""
    console.print(describe_machine(efficiency), soft_wrap=True)
    if efficiency.load.warning:
        console.print(efficiency.load.warning, style="bold", soft_wrap=True)
    if efficiency.remark:
        console.print(efficiency.remark, soft_wrap=True)
    for title, table in (
        ("models", models(efficiency)),
        ("rates", rates(efficiency)),
        ("share of the time that is needed at least", floors(efficiency)),
        ("memory per sequence", memory(efficiency)),
    ):
        console.print(f"\n{title}")
        console.file.write(table.to_terminal(console))


def describe_machine(efficiency: Efficiency) -> str:
    """Return a sentence about the machine and how was measured."""
    machine, load = efficiency.machine, efficiency.load
    share = "" if load.processor_share is None else f"processor time {load.processor_share:.0%} of the clock's, "
    how = "sums over layers measured one by one" if efficiency.by_block else "whole models"
    return (
        f"{machine.name}, threads: {machine.threads}; {efficiency.number_format}, matrix products "
        f"{si(machine.flops_per_s)}FLOP/s, memory {si(machine.bytes_per_s)}B/s; {how}, medians of "
        f"{efficiency.repeats} repeats that take turns; {share}load average "
        f"{load.load_average:.1f} on {load.cores} cores"
    )

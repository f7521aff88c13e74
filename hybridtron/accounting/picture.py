"""A model drawn in the terminal."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table

from hybridtron.accounting.describe import Account
from hybridtron.accounting.tables import print_table, terminal
from hybridtron.model.config import ModelConfig

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
LONGEST_BAR = 16


def draw(name: str, config: ModelConfig, account: Account) -> None:
    """Layers from the embedding down, runs of equal layers in one row; a bar is one layer's FLOPs."""
    console = terminal()
    colour = {block: COLOURS[i % len(COLOURS)] for i, block in enumerate(config.blocks)}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("layer", "block", "type"):
        table.add_column(title)
    for title in ("parameters", "FLOPs/token", "state"):
        table.add_column(title, justify="right")
    table.add_column("per layer", min_width=LONGEST_BAR)
    most = max(layer.flops_per_token for layer in account.layers)
    table.add_row("", "embedding", f"{config.vocab_size} x {config.hidden_size}", f"{account.embedding:,}", "", "", "")
    for _, group in groupby(account.layers, key=lambda layer: layer.block):
        run = list(group)
        first, last, times = run[0], run[-1], len(run)
        index = f"{first.index}" if times == 1 else f"{first.index}-{last.index}"
        bar = "█" * max(1, round(LONGEST_BAR * first.flops_per_token / most))
        each = "" if times == 1 else f" x {times}"
        table.add_row(
            index,
            f"[{colour[first.block]}]{first.block}[/]{each}",
            first.type,
            f"{first.parameters * times:,}",
            si(first.flops_per_token * times),
            f"{first.state_size * times:,}" if first.state_size else "",
            f"[{colour[first.block]}]{bar}[/]",
        )
    console.print(f"[bold]{name}[/]  {account.pattern}")
    print_table(console, table)
    per_token = account.flops_forward / account.seq_len
    tied = " (tied)" if config.tie_embeddings else ""
    console.print(
        f"\nparameters  {account.total:,} = {account.embedding:,} embedding{tied} + "
        f"{account.total - account.embedding:,} in {len(account.layers)} layers and norms; active {account.active:,}\n"
        f"FLOPs       {si(per_token)} per token forward, {si(3 * per_token)} in training, at {account.seq_len} tokens\n"
        f"state       {account.state_size:,} elements per sequence of {account.seq_len} tokens",
        soft_wrap=True,
    )


def si(value: float) -> str:
    """Four digits and a unit prefix."""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.4g}"

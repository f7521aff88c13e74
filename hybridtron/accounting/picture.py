"""A model drawn in the terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.text import Text

from hybridtron.accounting.describe import Account
from hybridtron.reporting.numbers import byte_size, si
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import Table

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
LONGEST_BAR = 16
NUMBERS = ("parameters", "FLOPs/token", "state")


@show.register(Account)
def draw(account: Account, console: Console) -> None:
    """Print the layers from the embedding down, runs of equal layers in one row; a bar is one layer's FLOPs."""
    config = account.config
    colour = {block: COLOURS[i % len(COLOURS)] for i, block in enumerate(config.blocks)}
    most = max(layer.flops_per_token for layer in account.layers)
    size = f"{config.vocab_size} x {config.hidden_size}"
    rows: list[tuple[str | Text, ...]] = [("", "embedding", size, f"{account.embedding:,}", "", "", "")]
    for _, group in groupby(account.layers, key=lambda layer: layer.block):
        run = list(group)
        first, last, times = run[0], run[-1], len(run)
        rows.append((
            f"{first.index}" if times == 1 else f"{first.index}-{last.index}",
            Text.assemble((first.block, colour[first.block]), "" if times == 1 else f" x {times}"),
            first.type,
            f"{first.parameters * times:,}",
            si(first.flops_per_token * times),
            f"{first.state_size * times:,}" if first.state_size else "",
            Text("█" * max(1, round(LONGEST_BAR * first.flops_per_token / most)), colour[first.block]),
        ))  # fmt: skip
    console.print(f"[bold]{account.name}[/]  {config.parsed_pattern}", soft_wrap=True)
    table = Table.from_rows(("layer", "block", "type", *NUMBERS, "per layer"), rows, right=NUMBERS)
    console.file.write(table.to_terminal(console))
    per_token = account.flops_forward / account.seq_len
    further = f" and multi-token prediction ({account.mtp:,})" if account.mtp else ""
    tied = " (tied)" if config.tie_embeddings else ""
    sizes = [f"{byte_size(size)} in {name}" for name, size in account.state_bytes.items()]
    state = f": {', '.join(sizes)}" if account.state_size else ""
    console.print(
        f"\nparameters  {account.total:,} = {account.embedding:,} embedding{tied} + "
        f"{account.total - account.embedding:,} in {len(account.layers)} layers and norms{further}; "
        f"active {account.active:,}\n"
        f"FLOPs       {si(per_token)} per token forward, {si(account.flops_training / account.seq_len)} in training, "
        f"at {account.seq_len} tokens\n"
        f"state       {account.state_size:,} elements per sequence of {account.seq_len} tokens{state}",
        soft_wrap=True,
    )

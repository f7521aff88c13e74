"""The metrics of logged steps as TensorBoard events, with the run's hyperparameters."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridtron.accounting.describe import describe
from hybridtron.config.flat import flat
from hybridtron.training.callbacks.base import FileWriter, Row, TrainContext
from hybridtron.training.config import RunConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Tags of numbers in a row. TensorBoard sorts groups and tags by name, and so shows the losses first.
TAGS = {
    "loss": "loss/train",
    "step_loss": "loss/train_step",
    "valid_loss": "loss/valid",
    "valid_bits_per_byte": "loss/valid_bits_per_byte",
    "ema_valid_loss": "loss/valid_ema",
    "mtp_loss": "loss/mtp",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "skipped": "optimizer/skipped",
    "tokens": "progress/tokens",
    "tokens_per_s": "speed/tokens_per_s",
    "flops_per_s": "speed/flops_per_s",
    "mfu": "speed/mfu",
}
FOLDERS = {"busiest_expert": "routing", "epochs": "progress"}  # of the tags of other metrics
COMPARED = ("loss/train", "loss/valid", "loss/valid_bits_per_byte")  # metrics in the table of hyperparameters


class TensorBoard(FileWriter):
    """Write events into `folder`. A resumed run hides the events after the step it resumes from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def on_train_start(self, context: TrainContext) -> None:
        """Open the event file and write the hyperparameters."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        _silence_writer_thread()
        step = context.state.step
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        # Not add_hparams, which opens a second run in a folder of its own.
        for summary in hparams(hyperparameters(context.config), dict.fromkeys(COMPARED, 0.0))[:2]:
            self.writer._get_file_writer().add_summary(summary, step)

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Write the scalars of a logged step."""
        if logged and self.writer:
            for key, value in scalars(row):
                self.writer.add_scalar(tag_of(key), value, row["step"])

    def close(self) -> None:
        """Close the event file."""
        if self.writer:
            self.writer.close()


def tag_of(key: str) -> str:
    """Return the tag of a number in a row, also of one source; those that are not in TAGS come after the losses too."""
    name, slash, source = key.partition("/")
    if name in TAGS:
        return TAGS[name] + slash + source
    return f"{FOLDERS.get(name, 'more')}/{key}"


def hyperparameters(config: RunConfig) -> dict[str, str | float | bool]:
    """Return name, pattern and parameters of a run, then its settings by dotted key, lists as text.

    Blocks that no layer uses, keys without a value and those that have no effect on losses are left out.
    """
    account = describe(config.model, config.data.seq_len)
    found: dict[str, str | float | bool] = {
        "name": config.name, "model.pattern": str(config.model.pattern), "parameters": account.total,
        "parameters.active": account.active,
    }  # fmt: skip
    settings = config.identity()  # without places and what has no effect on the numbers
    used = set(config.model.used_blocks)
    settings["model"]["blocks"] = {name: block for name, block in settings["model"]["blocks"].items() if name in used}
    for key, value in flat(settings).items():
        if value is not None:
            found.setdefault(key, value if isinstance(value, bool | int | float | str) else str(value))
    return found


@functools.cache
def _silence_writer_thread() -> None:
    """Let TensorBoard's writing thread print no traceback; the next call of its writer raises the exception."""
    from tensorboard.summary.writer import event_file_writer

    run = event_file_writer._AsyncWriterThread.run

    def run_silently(thread: Any) -> None:
        with contextlib.suppress(OSError):
            run(thread)

    event_file_writer._AsyncWriterThread.run = run_silently


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each finite number of a row; of expert loads, the busiest expert's over the mean."""
    for key, value in row.items():
        if key not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
            yield key, value
    for layer, shares in row.get("expert_load", {}).items():
        yield f"busiest_expert/{layer}", max(shares) * len(shares)

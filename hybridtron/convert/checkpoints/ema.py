"""Write the average of weights that training kept (optimizer.ema) as a run of its own."""

from __future__ import annotations

from pathlib import Path

from hybridtron.checkpoint_keys import EMA, OPTIMIZER, optimizer_key
from hybridtron.convert.formats.checkpoint import CheckpointSource, StoredBox, boxes_of
from hybridtron.convert.new_run import Progress, new_run
from hybridtron.convert.workers import for_each
from hybridtron.distributed.checkpoint.manifest import Verify
from hybridtron.errors import UserError
from hybridtron.files import as_path
from hybridtron.training.run_folder.folder import read_config, read_run
from hybridtron.training.run_folder.train_state import read_state

AVERAGE = optimizer_key(EMA)  # how the keys of averages begin


def ema(run: str | Path, out: str | Path, *, verify: Verify = "full", progress: Progress | None = None) -> None:
    """Write a run folder whose parameters are the average that a checkpoint has, in the parameters' number formats.

    Args:
        run: run folder, of which the newest checkpoint is taken, or checkpoint.
        out: run folder to make; its checkpoint has no optimizer state. Parameters that are not trained keep their
            values.
        verify: how much of the checkpoint is compared with its checksums first.
        progress: called while tensors are written.

    Raises:
        UserError: where the checkpoint has no average, or where `out` exists or the disk is too small.
        OSError: where the system cannot read or write.
    """
    out = as_path(out, "out")
    _, checkpoint = read_run(as_path(run, "run"))
    source = CheckpointSource(checkpoint, verify, optimizer=True)
    if not any(key.startswith(AVERAGE) for key in source.tensors):
        raise UserError(f"{checkpoint}: has no average of weights; expected a checkpoint of a run with optimizer.ema")
    tensors = {key: info for key, info in source.tensors.items() if not key.startswith(OPTIMIZER)}
    config, state = read_config(checkpoint.parent), read_state(checkpoint)
    with new_run(out, config, state, tensors, run=checkpoint.parent, progress=progress) as sink:

        def write_average(place: StoredBox) -> None:
            name, box = place
            average = source.read(AVERAGE + name if AVERAGE + name in source.tensors else name, *box)
            sink.write(name, average.to(tensors[name].dtype), box.offsets)

        for_each(write_average, boxes_of(tensors))

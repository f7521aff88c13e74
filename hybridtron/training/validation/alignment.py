"""Check that the sizes of FP8 products are multiples of what the recipe needs."""

from __future__ import annotations

import math

from hybridtron.errors import UserError
from hybridtron.model.quantized import QuantizedLinear, quantized_linears
from hybridtron.tensors import Shard, Shards
from hybridtron.training.config import RunConfig, multiples


def check_alignment(config: RunConfig) -> None:
    """Raise UserError where a linear that multiplies FP8 numbers, or a micro-batch, has a size that does not fit.

    Each process's own sizes count: of the weight that tensor parallelism leaves it, and of its tokens, which
    Transformer Engine rounds to FP8 before sequence parallelism gathers them.
    """
    linears = {linear.label: linear for linear in quantized_linears(config.model, config.precision)}
    multiple = config.precision.alignment
    unfit = {label: found for label, linear in linears.items() if (found := _unfit_size(config, linear))}
    if unfit:
        label, (what, size, keys) = next(iter(unfit.items()))
        ways = f" ({' or '.join(keys)} sets it)" if keys else ""
        raise UserError(
            f"precision.recipe = {config.precision.recipe}: {label} has {size} {what} on each process{ways}; expected "
            f"a multiple of {multiple} ({multiples(size, multiple)}), or precision.skip with {', '.join(unfit)}"
        )
    parallel, batch = config.parallel, config.train.micro_batch_size
    cuts = {"context": parallel.context, "tensor": parallel.tensor if parallel.sequence else 1}
    tokens = batch * config.data.seq_len // math.prod(cuts.values())
    if linears and tokens % multiple:
        cut = "".join(f" / parallel.{key} {size}" for key, size in cuts.items() if size > 1)
        raise UserError(
            f"precision.recipe = {config.precision.recipe}: micro_batch_size {batch} x seq_len {config.data.seq_len}"
            f"{cut} = {tokens} tokens; expected a multiple of {multiple} ({multiples(tokens, multiple)})"
        )


def _unfit_size(config: RunConfig, linear: QuantizedLinear) -> tuple[str, int, list[str]] | None:
    """Return what of a linear's weight on each process is no multiple, its number, and the config keys that set it."""
    parallel, spec = config.parallel, linear.spec
    shards = Shards(Shard(0, parallel.tensor), Shard(0, parallel.expert), Shard(0, parallel.expert_tensor))
    rank = len(spec.shape)
    for axis, what in ((rank - 2, "outputs"), (rank - 1, "inputs")):
        size = spec.local_shape(shards)[axis]
        if size % config.precision.alignment:
            keys = [part.key for part in spec.parts if spec.axis == axis and part.key]
            if size != spec.shape[axis]:
                keys.append("parallel.expert_tensor" if spec.experts else "parallel.tensor")
            return what, size, list(dict.fromkeys(keys))
    return None

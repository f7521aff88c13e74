"""Which linears of a model multiply FP8 numbers, from its config alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hybridtron.config.nearest import nearest
from hybridtron.distributed.config import PrecisionConfig
from hybridtron.mixers.contract import MixerConfig
from hybridtron.model.config import ModelConfig
from hybridtron.tensors import TensorSpec


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear, or the same projection of all experts of a layer."""

    name: str  # in the model: layers.3.mixer.out_proj
    label: str  # BLOCK.PART: attn.out_proj, by which precision.skip knows it
    spec: TensorSpec  # of its weight [out, in], or with experts [experts, out, in]


def quantized_linears(model: ModelConfig, precision: PrecisionConfig) -> list[QuantizedLinear]:
    """List the linears that multiply FP8 numbers, in the order of the layers; none where the format is not fp8.

    They are the linears of layers and the projections of experts, without what `precision` leaves in bf16. Embedding,
    output projection, norms, routers, and low-rank maps that a primitive multiplies by itself never are.
    """
    if precision.format != "fp8":
        return []
    names = model.layer_names
    kept = range(precision.first_last_bf16, len(names) - precision.first_last_bf16)
    return [
        QuantizedLinear(f"layers.{index}.mixer.{part}", label, spec)
        for index in kept
        for part, spec in linears_of(model.blocks[names[index]])
        if not is_skipped(label := f"{names[index]}.{part}", precision.skip)
    ]


def linears_of(block: MixerConfig) -> Iterator[tuple[str, TensorSpec]]:
    """Yield name and weight of each linear of a block, and of each projection of its experts."""
    for name, spec in block.tensors().items():
        if name.endswith(".weight"):
            yield name.removesuffix(".weight"), spec
        elif spec.experts and len(spec.shape) == 3:
            yield name, spec


def is_skipped(label: str, skip: list[str]) -> bool:
    """Return whether an entry matches the label BLOCK.PART or what stands before one of its dots."""
    words = label.split(".")
    prefixes = [".".join(words[:length]) for length in range(1, len(words) + 1)]
    return any(fnmatchcase(prefix, entry) for entry in skip for prefix in prefixes)


def unknown_entry(model: ModelConfig, skip: list[str]) -> tuple[str, str] | None:
    """Return the first entry of `skip` that matches no block and no linear, with what was expected instead."""
    labels = [f"{name}.{part}" for name, block in model.blocks.items() for part, _ in linears_of(block)]
    known = [*model.blocks, *labels]
    for entry in skip:
        if not any(is_skipped(label, [entry]) for label in known):
            close = nearest(entry, known)
            expected = f"a block ({', '.join(model.blocks)}) or a linear of one, such as {known[-1]}"
            return entry, expected + (f" (nearest: {close})" if close else "")
    return None

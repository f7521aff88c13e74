"""What a model is and costs, from its config alone: no tensor is made.

Conventions: FLOPs are those of matrix multiplications as executed on a CPU, a multiply-add counted as two; attention
leaves out the blocks of keys that lie wholly after a block of queries, so that long sequences count about half the
square. A training step costs three forward passes, with multi-token prediction, which no other pass runs. `embedding`
counts the embedding and, where it is not tied, the output projection.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hybridtron.model.config import ModelConfig
from hybridtron.model.stage import mtp_flops
from hybridtron.model.tensors import model_tensors
from hybridtron.reporting.shown import Shown

FORMAT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class LayerAccount:
    index: int
    block: str
    type: str
    parameters: int
    flops_per_token: float
    state_size: int


@dataclass(frozen=True)
class Account(Shown):
    """Per-token FLOPs are averages over a sequence of seq_len tokens; state_size is elements per sequence of
    seq_len, as state_bytes is."""

    name: str
    config: ModelConfig
    seq_len: int
    layers: tuple[LayerAccount, ...]
    total: int
    embedding: int
    active: int
    flops_forward: int  # per sequence
    state_size: int
    state_bytes: dict[str, int]  # by the format of the parameters
    mtp: int = 0  # of `total`, the parameters of multi-token prediction
    flops_mtp: int = 0  # of its forward pass, which only training runs, per sequence

    @property
    def flops_training(self) -> int:
        """Return the FLOPs of a training step per sequence: the backward pass counts twice."""
        return 3 * (self.flops_forward + self.flops_mtp)

    def as_json(self) -> dict[str, Any]:
        per_token = self.flops_forward / self.seq_len
        return {
            "pattern": str(self.config.parsed_pattern),
            "seq_len": self.seq_len,
            "layers": [asdict(layer) for layer in self.layers],
            "parameters": {
                "total": self.total,
                "embedding": self.embedding,
                "non_embedding": self.total - self.embedding,
                "active": self.active,
                **({"mtp": self.mtp} if self.mtp else {}),
            },
            "flops_per_token": {
                "forward": _whole(per_token),
                "training": _whole(self.flops_training / self.seq_len),
            },
            "state_size": self.state_size,
            "state_bytes": self.state_bytes,
        }


def describe(config: ModelConfig, seq_len: int, name: str = "model") -> Account:
    """Count parameters, FLOPs and state of every layer. The vocabulary size must be resolved."""
    specs = model_tensors(config)
    blocks = [config.blocks[name] for name in config.layer_names]
    flops = [block.flops(seq_len) + config.residual.flops(config, i, seq_len) for i, block in enumerate(blocks)]
    layers = tuple(
        LayerAccount(
            index=i,
            block=block_name,
            type=block.type,
            parameters=sum(spec.numel for key, spec in specs.items() if key.startswith(f"layers.{i}.")),
            flops_per_token=_whole(flops[i] / seq_len),
            state_size=block.state_size(seq_len),
        )
        for i, (block_name, block) in enumerate(zip(config.layer_names, blocks, strict=True))
    )
    further = [config.blocks[name] for name in config.mtp_layer_names] * config.mtp_modules
    total = sum(spec.numel for spec in specs.values())
    return Account(
        name=name,
        config=config,
        seq_len=seq_len,
        layers=layers,
        total=total,
        embedding=sum(spec.numel for key, spec in specs.items() if key.split(".")[0] in ("embedding", "head")),
        active=total - sum(block.parameters() - block.active_parameters() for block in (*blocks, *further)),
        flops_forward=sum(flops)
        + config.residual.end_flops(config, seq_len)
        + 2 * seq_len * math.prod((config.hidden_size, config.vocab_size)),
        state_size=sum(layer.state_size for layer in layers),
        state_bytes={
            name: sum(block.state_bytes(seq_len, width) for block in blocks) for name, width in FORMAT_BYTES.items()
        },
        mtp=sum(spec.numel for key, spec in specs.items() if key.split(".")[0] == "mtp"),
        flops_mtp=mtp_flops(config, seq_len),
    )


def _whole(value: float) -> float:
    """Convert whole numbers to integers, so that JSON shows them so."""
    return int(value) if value == int(value) else value

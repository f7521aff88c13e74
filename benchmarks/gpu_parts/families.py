"""Slices of the model families: a few layers at full width, with a vocabulary cut in proportion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridtron.api.configs import read_training_config
from hybridtron.config.yaml_text import read
from hybridtron.training.config import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "runs"
VOCAB = 16384  # of 128256, as 8 of some 50 layers


@dataclass(frozen=True)
class Slice:
    """Layers of a family at their width, also in the letters of megatron-core's MambaModel."""

    family: str
    pattern: str
    letters: str
    config: str

    @property
    def name(self) -> str:
        return f"{self.family} {'hybrid' if 'M' in self.letters else 'attention'}"


HYBRID = ("3*(mamba mlp) attn mlp", "M-M-M-*-")
ATTENTION = ("4*(attn mlp)", "*-*-*-*-")
SLICES = [
    Slice("7B", *HYBRID, "hybrid_7b.yaml"),
    Slice("1B", *HYBRID, "hybrid_1b.yaml"),
    Slice("7B", *ATTENTION, "hybrid_7b.yaml"),
]


def run_config(part: Slice, seq_len: int, batch: int, precision: dict[str, Any], tiny: bool, **model: Any) -> RunConfig:
    """Build the config of a run of the slice on one device; with `tiny` at a small width, for a CPU."""
    section = read(str(CONFIGS / part.config))["model"]
    section |= {"pattern": part.pattern, "vocab_size": VOCAB, **model}
    if tiny:
        section |= {"hidden_size": 64, "vocab_size": 320, "blocks": TINY_BLOCKS}
    return read_training_config(
        {
            "name": "benchmark",
            "model": section,
            "data": {"train": "stdlib", "seq_len": seq_len},
            "train": {"steps": 1000, "global_batch_size": 2 * batch, "micro_batch_size": batch},
            "optimizer": {"lr": 1e-4},
            "precision": precision,
        }
    )


TINY_BLOCKS = {
    "mamba": {"type": "mamba2", "head_dim": 16, "state_dim": 16, "num_groups": 2},
    "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 128},
}

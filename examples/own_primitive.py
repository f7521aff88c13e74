"""A primitive of your own in one file: minGRU (Feng et al. 2024, arXiv 2410.01201), trained beside attention.

    h_t = (1 - z_t) h_{t-1} + z_t c_t,   z_t = sigmoid(gate_t),   z and c projections of the input

Inside the project it would be one folder, one line in the registry and one in each of two tables of tests; see
docs/new_primitive.md.

    python examples/own_primitive.py
"""

from typing import Literal

import torch
from torch import Tensor

import hybridtron as ht
from hybridtron.backends.base import Backend
from hybridtron.mixers.contract import MixerConfig, linear_flops
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.registry import MIXERS
from hybridtron.tensors import Init, PackedPart, TensorSpec


class MinGRUConfig(MixerConfig):
    """Gated recurrence without a matrix in its state."""

    type: Literal["min_gru"]

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare every parameter once: shape, initial values, and the parts that parallelism cuts."""
        width = self.hidden_size
        packed = tuple(PackedPart(name, width, key="hidden_size") for name in ("gate", "candidate"))
        return {
            "in_proj.weight": TensorSpec((2 * width, width), Init("input"), packed),
            "out_proj.weight": TensorSpec((width, width), Init("output"), packed[1:], axis=1),
        }

    def flops(self, seq_len: int) -> int:
        """Count the FLOPs of the projections."""
        return linear_flops(seq_len, *self.tensors().values())

    def state_size(self, seq_len: int) -> int:
        """Count one element per channel, at any length."""
        return self.hidden_size

    def build(self, backend: Backend) -> Mixer:
        """Build the module; in a folder of its own this method is not needed."""
        return MinGRU(self, backend)


class MinGRU(Mixer):
    """Map [s, b, h] to [s, b, h]; parts of the projection are the gate and the candidate."""

    def core(self, packed: Tensor) -> Tensor:
        """Map gate and candidate [s, b, 2 c] of all tokens to h [s, b, c], by a scan in log2(s) passes."""
        gate, candidate = packed.chunk(2, -1)
        kept, h = torch.sigmoid(-gate), torch.sigmoid(gate) * candidate
        distance = 1
        while distance < len(h):  # h holds the sums over the last `distance` tokens, `kept` the products of 1 - z
            h = torch.cat([h[:distance], h[distance:] + kept[distance:] * h[:-distance]])
            kept = torch.cat([kept[:distance], kept[distance:] * kept[:-distance]])
            distance *= 2
        return h

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros [b, c]."""
        return self.in_proj.weight.new_zeros(batch, self.config.hidden_size)

    def prefill_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Map gate and candidate [s, b, 2 c] of the next tokens to h [s, b, c], with what is left of the state."""
        gate, _ = packed.chunk(2, -1)
        h = self.core(packed) + torch.sigmoid(-gate).cumprod(0) * state
        return h, h[-1]

    def step_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Map gate and candidate [b, 2 c] of one token to h [b, c]."""
        gate, candidate = packed.chunk(2, -1)
        state = torch.lerp(state, candidate, torch.sigmoid(gate))
        return state, state


MIXERS["min_gru"] = MinGRUConfig

MODEL = {
    "hidden_size": 64,
    "blocks": {
        "gru": {"type": "min_gru"},
        "attn": {"type": "attention", "num_heads": 4},
        "mlp": {"type": "swiglu", "ffn_hidden_size": 128},
    },
    "pattern": "gru mlp attn mlp",
}

if __name__ == "__main__":
    model = ht.build_model(MODEL)
    tokens = torch.tensor([list(b"the quick brown fox jumps over the lazy dog " * 4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, 101):
        loss = model.loss(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}  loss {loss.item():.3f}")
    print(model.generate("the quick", max_tokens=20, temperature=0)[0])

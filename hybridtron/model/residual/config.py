"""The `model.residual` section: how layers read from and write to the residual stream.

Free of torch. A topology is a config here, which declares its parameters and counts its FLOPs, and a module
`hybridtron/model/residual/TYPE.py` with the classes `Layer` and `End`.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hybridtron.config.schema import Strict, problem
from hybridtron.tensors import Init, TensorSpec

if TYPE_CHECKING:
    from hybridtron.model.config import ModelConfig


class ResidualConfig(Strict):
    """Base of every topology's config: one state that every layer norms, reads and adds to."""

    type: str

    def check(self, model: ModelConfig) -> None:
        """Raise a validator's problem where the topology does not fit the model."""

    def has_norm(self, layer: int) -> bool:
        """Return whether layer number `layer` norms its input itself."""
        return True

    def tensors(self, model: ModelConfig, layer: int) -> dict[str, TensorSpec]:
        """Declare the parameters of layer number `layer`, by their names after `layers.LAYER.residual.`."""
        return {}

    def end_tensors(self, model: ModelConfig) -> dict[str, TensorSpec]:
        """Declare the parameters between the last layer and the final norm, by their names after `residual_end.`."""
        return {}

    def flops(self, model: ModelConfig, layer: int, seq_len: int) -> int:
        """Count the FLOPs of layer number `layer` for one sequence, beside those of its mixer."""
        return 0

    def end_flops(self, model: ModelConfig, seq_len: int) -> int:
        """Count the FLOPs between the last layer and the final norm for one sequence."""
        return 0

    def state_widths(self, model: ModelConfig, layer: int) -> list[int]:
        """Return the widths of the states before layer number `layer`."""
        return [model.hidden_size]


class PlainResidualConfig(ResidualConfig):
    """x + layer(norm(x))."""

    type: Literal["plain"] = "plain"


class ParallelResidualConfig(ResidualConfig):
    """Consecutive layers in groups that read the same normed input: x + first(norm(x)) + second(norm(x)) (GPT-J, PaLM).

    The norm is that of the first layer of each group.
    """

    type: Literal["parallel"]
    layers: int = Field(2, ge=2, description="Layers of a group, such as a mixer and the MLP after it.")

    def check(self, model: ModelConfig) -> None:
        count = len(model.layer_names)
        if count % self.layers:
            nearest = min(
                (n for n in range(2, count + 1) if count % n == 0), key=lambda n: abs(n - self.layers), default=0
            )
            expected = f"a divisor of the pattern's {count} layers" + (f" (nearest: {nearest})" if nearest else "")
            raise problem("residual.layers", self.layers, expected)
        _require_norms_before(model, "whose group shares a norm before its layers")

    def has_norm(self, layer: int) -> bool:
        return layer % self.layers == 0

    def state_widths(self, model: ModelConfig, layer: int) -> list[int]:
        return [model.hidden_size] * (1 if layer % self.layers == 0 else 2)


class SandwichResidualConfig(ResidualConfig):
    """x + norm(layer(norm(x))): a norm before each layer and one after it (Gemma 2, LFM3)."""

    type: Literal["sandwich"]

    def check(self, model: ModelConfig) -> None:
        _require_norms_before(model, "since a norm stands on both sides")

    def tensors(self, model: ModelConfig, layer: int) -> dict[str, TensorSpec]:
        return {"norm.weight": model.norm_spec}


class HyperConnectionsConfig(ResidualConfig):
    """Several streams that layers read from and write to by weights that depend on the token (mHC, arXiv 2512.24880;
    DeepSeek V4).

    From the normed streams X [n, h] one linear gives pre [n], post [n] and comb [n, n], which Sinkhorn's iteration
    makes doubly stochastic: y = layer(norm(pre X)), X <- comb^T X + post y. At the end sigmoid weights add up the
    streams.
    """

    type: Literal["hyper_connections"]
    streams: int = Field(4, ge=2, description="Residual streams.")
    sinkhorn_iterations: int = Field(
        20, ge=1, description="Times that columns and rows of the mixing matrix are normed to 1."
    )
    eps: float = Field(1e-6, gt=0, description="Added to input weights, and to the mixing matrix and its sums.")

    def tensors(self, model: ModelConfig, layer: int) -> dict[str, TensorSpec]:
        weights = self.streams * (2 + self.streams)
        return {
            "weight": TensorSpec((weights, self.streams * model.hidden_size), Init("input"), float32=True),
            "bias": TensorSpec((weights,), Init("zeros"), decay=False, float32=True),
            "scale": TensorSpec((3,), Init("ones"), decay=False, float32=True),
        }

    def end_tensors(self, model: ModelConfig) -> dict[str, TensorSpec]:
        return {
            "weight": TensorSpec((self.streams, self.streams * model.hidden_size), Init("input"), float32=True),
            "bias": TensorSpec((self.streams,), Init("zeros"), decay=False, float32=True),
            "scale": TensorSpec((1,), Init("ones"), decay=False, float32=True),
        }

    def flops(self, model: ModelConfig, layer: int, seq_len: int) -> int:
        n, width = self.streams, model.hidden_size
        return 2 * seq_len * n * width * (n * (2 + n) + 1 + n + 1)  # the linear, pre X, comb^T X, post y

    def end_flops(self, model: ModelConfig, seq_len: int) -> int:
        return 2 * seq_len * self.streams * model.hidden_size * (self.streams + 1)

    def state_widths(self, model: ModelConfig, layer: int) -> list[int]:
        return [self.streams * model.hidden_size]


class AttentionResidualsConfig(ResidualConfig):
    """Layers read a softmax-weighted sum of the outputs of all blocks of layers so far (Kimi, arXiv 2603.15031).

    The states h are the embedding, the sum of what the layers of each finished block added, and that of the block so
    far. The input of a layer is their sum with weights softmax(q . h / rms(h)), where q is the layer's query.
    """

    type: Literal["attention_residuals"]
    block_size: int = Field(12, ge=1, description="Layers of a block, mixers and MLPs each counted as one.")
    normed_values: bool = Field(False, description="Also add up h / rms(h) in place of h (Inkling 2).")

    def tensors(self, model: ModelConfig, layer: int) -> dict[str, TensorSpec]:
        return {} if layer == 0 else self.end_tensors(model)

    def end_tensors(self, model: ModelConfig) -> dict[str, TensorSpec]:
        return {"query": TensorSpec((model.hidden_size,), Init("zeros"), decay=False)}

    def flops(self, model: ModelConfig, layer: int, seq_len: int) -> int:
        return 0 if layer == 0 else 2 * seq_len * sum(self.state_widths(model, layer))

    def end_flops(self, model: ModelConfig, seq_len: int) -> int:
        return self.flops(model, len(model.layer_names), seq_len)

    def state_widths(self, model: ModelConfig, layer: int) -> list[int]:
        return [model.hidden_size] * (1 + ceil(layer / self.block_size))


RESIDUALS: dict[str, type[ResidualConfig]] = {
    "plain": PlainResidualConfig,
    "parallel": ParallelResidualConfig,
    "sandwich": SandwichResidualConfig,
    "hyper_connections": HyperConnectionsConfig,
    "attention_residuals": AttentionResidualsConfig,
}


def _require_norms_before(model: ModelConfig, reason: str) -> None:
    """Raise a validator's problem for a block whose norm stands after its mixer."""
    for name in dict.fromkeys(model.layer_names):
        if model.blocks[name].norm_position != "pre":
            raise problem(f"blocks.{name}.norm_position", "post", f"pre with residual {model.residual.type}, {reason}")

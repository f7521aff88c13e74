"""The `parallel` and `precision` sections of a run's config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hybridtron.config.schema import Strict


class ParallelConfig(Strict):
    """How the model is laid out over processes. The layout never changes what is trained.

    Processes that are not needed for one copy of the model hold further copies (data parallelism).
    """

    tensor: int = Field(1, ge=1, description="Processes that share each layer's heads and channels.")
    sequence: bool = Field(False, description="Also cut norms and residuals over the tensor-parallel processes.")


class PrecisionConfig(Strict):
    """Number formats."""

    format: Literal["fp32", "bf16"] = Field(
        "fp32", description="Parameters and activations; with bf16 the optimizer keeps fp32 copies of the parameters."
    )

"""The `schedule` section of a run's config: the learning rate over its steps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import Strict, problem

DECAYING = ("wsd", "power")  # schedules that may end with a decay


class ScheduleConfig(Strict):
    """Learning rate over the run: a linear warm-up, then one of four shapes."""

    type: Literal["cosine", "wsd", "power", "constant"] = Field(
        "cosine",
        description="cosine: to min_lr_ratio at the last step. wsd: constant, then a decay. power: falls as a power of "
        "the step, then a decay. constant.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps from 0 to the peak.")
    decay_steps: int = Field(0, ge=0, description="wsd, power: steps of the final decay.")
    decay_shape: Literal["linear", "1-sqrt"] = Field(
        "linear", description="wsd, power: with the share x of the decay done, 1 - x, or 1 - sqrt(x)."
    )
    min_lr_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Final learning rate as a share of the peak; with power, of what it is without the decay.",
    )
    exponent: float = Field(0.51, gt=0, description="power: the learning rate falls as step^-exponent.")
    flat_steps: int = Field(
        0, ge=0, description="power: the last step at the peak, from which it falls; 0: warmup_steps."
    )

    @model_validator(mode="after")
    def _only_keys_of_the_type(self) -> ScheduleConfig:
        for key, types in {"decay_shape": DECAYING, "exponent": ("power",), "flat_steps": ("power",)}.items():
            value, default = getattr(self, key), type(self).model_fields[key].default
            if self.type not in types and value != default:
                raise problem(key, value, f"{default} with type {self.type}")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the keys that have an effect, without those that came later and are at their defaults."""
        unused = set() if self.type == "power" else {"exponent", "flat_steps"}
        return self.model_dump(
            mode="json", exclude=unused | ({"decay_shape"} if self.decay_shape == "linear" else set())
        )

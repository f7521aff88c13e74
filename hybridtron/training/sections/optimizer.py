"""The `optimizer` section of a run's config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hybridtron.config.schema import Strict, problem


class MuonConfig(Strict):
    """Muon for the matrices of linears (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982)."""

    lr_ratio: float = Field(1.0, gt=0, description="Muon's learning rate as a multiple of optimizer.lr.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the mean of gradients.")
    nesterov: bool = Field(True, description="Look one step ahead along the momentum.")
    ns_steps: int = Field(5, ge=1, le=99, description="Newton-Schulz iterations that orthogonalise an update.")
    scale: Literal["match_rms_adamw", "spectral"] = Field(
        "match_rms_adamw",
        description="Factor of a matrix's orthogonal update. match_rms_adamw: 0.2 sqrt(max(rows, columns)), so that "
        "AdamW's learning rate and weight decay serve. spectral: sqrt(max(1, rows / columns)).",
    )


class EMAConfig(Strict):
    """Exponential moving average of the weights, in float32, beside those that are trained."""

    decay: float = Field(0.999, gt=0, lt=1, description="What the average so far counts for; the weights: the rest.")
    every: int = Field(1, ge=1, description="Updates between those of the average.")


class OptimizerConfig(Strict):
    """AdamW with decoupled weight decay; norms, biases, A_log, D and dt_bias are not decayed."""

    type: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: Muon for the matrices of linears, AdamW for embedding, output projection, norms and others.",
    )
    lr: float = Field(gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay, times the learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    clip_grad: float = Field(1.0, ge=0, description="Largest norm of all gradients together; 0: no limit.")
    clip_groups: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Largest norms of the gradients of groups, applied before clip_grad: names of blocks, embedding, "
        "head, norms (of layers and the last one), residual, mtp.",
    )
    muon: MuonConfig = Field(MuonConfig(), description="With type muon.")
    ema: EMAConfig | None = Field(
        None, description="Keep an average of the weights, and evaluate it too; null: keep none."
    )

    @model_validator(mode="after")
    def _muon_is_used(self) -> OptimizerConfig:
        if self.type != "muon" and self.muon != MuonConfig():
            raise problem("type", self.type, "muon, with keys under optimizer.muon")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the keys that have an effect, without those that came later and are at their defaults."""
        unused = {"type", "muon"} if self.type == "adamw" else set()
        unused |= {key for key in ("ema", "clip_groups") if not getattr(self, key)}
        return self.model_dump(mode="json", exclude=unused)

    @field_validator("betas")
    @classmethod
    def _inside_unit_interval(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise problem("", list(betas), "two numbers, each at least 0 and below 1")
        return betas

"""The `checkpoint` section of a run's config: when the run is saved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hybridtron.config.schema import Strict


class CheckpointConfig(Strict):
    """When the run is saved; it always is at the end and when it is told to stop."""

    save_every: int = Field(0, ge=0, description="Steps between checkpoints; 0: only at the end.")
    save_every_minutes: float = Field(
        0, ge=0, description="Minutes after the last checkpoint at which another is saved, beside save_every; 0: none."
    )
    keep_last: int = Field(2, ge=0, description="Checkpoints kept; older ones are deleted. 0: all.")
    keep_every: int = Field(
        0,
        ge=0,
        description="The run is also saved at multiples of so many steps, which are never deleted; 0: none.",
    )
    mttf_hours: float | None = Field(
        None, gt=0, description="Mean hours between failures, for the suggested saving interval; null: as observed."
    )
    asynchronous: bool = Field(
        True, description="Write in the background while training goes on; false: training waits for the disk."
    )
    verify: Literal["full", "sampled", "none"] = Field(
        "full",
        description="How much of a checkpoint is compared with its checksums before it is loaded. sampled: the small "
        "files and one in sixteen tensors.",
    )

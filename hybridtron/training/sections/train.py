"""The `train` section of a run's config: how long, in what portions, and what is watched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hybridtron.config.schema import Strict
from hybridtron.data.loaders.batch_sizes import BatchSizes


class BatchStage(Strict):
    """Steps with a global batch of another size."""

    steps: int = Field(ge=1, description="Steps of the stage.")
    global_batch_size: int = Field(ge=1, description="Sequences per optimizer step in them.")


INIT_KEYS = ("init_map", "init_missing", "init_left_over", "init_vocabulary")  # of train, beside init_from


class TrainConfig(Strict):
    """How long, in what portions, and what is watched."""

    steps: int = Field(ge=1, description="Optimizer steps of the whole run.")
    init_from: str | None = Field(
        None,
        min_length=1,
        description="Run folder or checkpoint whose weights the run begins with, at step 0; by default random weights. "
        "It must have the same parameters, but for what the next four keys say; its layout, number format and data do "
        "not matter.",
    )
    init_map: dict[str, str | None] = Field(
        {},
        description="Names in this model -> names in init_from, such as `layers.4: layers.1`, `attn: attn` (its layers "
        "of a block, in order) or `head: embedding`; null keeps random values. Once it names a layer or a block, other "
        "layers have no source.",
    )
    init_missing: list[str] = Field(
        [],
        description="Parameters of this model that init_from may lack, which then keep random values: names, "
        "beginnings of names such as `layers.3`, patterns with *, or blocks.",
    )
    init_left_over: list[str] = Field(
        [], description="Parameters of init_from that this model may lack, named in the same way."
    )
    init_vocabulary: Literal["same", "extend", "cut"] = Field(
        "same",
        description="Rows of embedding and output projection. same: as many as init_from has. extend: more, of which "
        "the new ones keep random values. cut: fewer, without the last ones.",
    )
    global_batch_size: int = Field(ge=1, description="Sequences per optimizer step, over all processes.")
    batch_warmup: list[BatchStage] = Field(
        default_factory=list,
        description="Stages at the beginning, one after another, with other global batches; then global_batch_size.",
    )
    micro_batch_size: int = Field(1, ge=1, description="Sequences per forward pass of one process.")
    z_loss: float = Field(0.0, ge=0, description="Weight of the squared log partition function in the loss.")
    log_every: int = Field(10, ge=1, description="Steps between rows of metrics.")
    eval_every: int = Field(0, ge=0, description="Steps between evaluations; 0: only at the end.")
    eval_sequences: int = Field(
        128, ge=1, description="Held-out sequences per evaluation, evenly spaced over the file."
    )
    max_skipped_steps: int = Field(
        10,
        ge=1,
        description="Steps in a row that may be skipped for a non-finite loss or gradient; then the run stops.",
    )
    layer_statistics_every: int = Field(
        0,
        ge=0,
        description="Steps between rows of layer_statistics.jsonl: RMS of activations, gradient norm and size of the "
        "update of each layer; 0: none.",
    )
    cuda_graphs: bool = Field(
        False,
        description="Replay forward and backward passes of a step as one CUDA graph, so that small models do not wait "
        "for Python; without a GPU of no effect.",
    )
    compile: bool = Field(
        False,
        description="Compile the layers with torch.compile, which fuses what is not in kernels, when they first run. "
        "For CUDA: on a CPU the kernels in C are faster.",
    )
    sample_tokens: int = Field(0, ge=0, description="Tokens of sample text printed at the end.")
    wandb: str | None = Field(
        None, min_length=1, description="Weights & Biases project that the metrics are sent to (extra wandb)."
    )

    @property
    def batch_sizes(self) -> BatchSizes:
        """Return the global batch size of every step."""
        return BatchSizes(
            self.global_batch_size, tuple((stage.steps, stage.global_batch_size) for stage in self.batch_warmup)
        )

"""The `parallel` and `precision` sections of a run's config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import Strict, problem

if TYPE_CHECKING:
    import torch

Recompute = Literal["none", "selective", "full"]
Recipe = Literal["tensorwise", "delayed", "blockwise", "mxfp8"]

AMAX_HISTORY = 16  # steps whose largest values set the scales of recipe delayed
FP8_ALIGNMENT: dict[Recipe, int] = {"tensorwise": 16, "delayed": 16, "mxfp8": 32, "blockwise": 128}


class ParallelConfig(Strict):
    """How the model is laid out over processes. The layout never changes what is trained.

    One copy of the model takes tensor x context x pipeline processes; all others hold further copies (data
    parallelism). Experts are laid out over the tensor x context x data processes of a pipeline stage.
    """

    tensor: int = Field(1, ge=1, description="Processes that share each layer's heads and channels.")
    sequence: bool = Field(False, description="Also cut norms and residuals over the tensor-parallel processes.")
    context: int = Field(1, ge=1, description="Processes that share each sequence, in runs of equal length.")
    pipeline: int = Field(1, ge=1, description="Stages that the layers are cut into, each on processes of its own.")
    virtual_pipeline: int = Field(
        1, ge=1, description="Runs of layers that each pipeline stage holds, for the interleaved schedule."
    )
    expert: int = Field(1, ge=1, description="Processes that share the experts of a layer.")
    expert_tensor: int = Field(1, ge=1, description="Processes that share each expert's channels.")
    data: int | None = Field(
        None, ge=1, description="Copies of the model; by default as many as there are processes for."
    )
    distributed_optimizer: bool = Field(
        False, description="Cut optimizer state and fp32 copies over the data-parallel processes."
    )
    overlap_grad_reduce: bool = Field(
        False,
        description="Reduce gradients over the data-parallel processes while the backward pass of the last micro-batch "
        "goes on, in buckets of about 40 million; pipeline stages after the first have one bucket.",
    )
    overlap_param_gather: bool = Field(
        False,
        description="Gather the parameters that other processes have updated, in the same buckets, while the next "
        "forward pass goes on; needs distributed_optimizer and overlap_grad_reduce.",
    )
    tp_comm_overlap: bool = Field(
        False,
        description="Send the messages of linears between tensor-parallel processes while these multiply, in pieces of "
        "their tokens; needs tensor of 2 or more. Linears are megatron-core's then, not Transformer Engine's.",
    )
    recompute: Recompute | dict[str, Recompute] = Field(
        "none",
        description="Activations that the backward pass computes again: those of a layer's core operation (selective), "
        "all of a layer (full), or none; one word for all layers, or one per block name.",
    )
    cpu_offload_layers: int = Field(
        0,
        ge=0,
        description="Layers, from the first of each run of layers that a process holds, whose activations wait for the "
        "backward pass in pinned CPU memory; on a CPU of no effect, as they are there already.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ParallelConfig:
        if self.sequence and self.tensor == 1:
            raise problem("sequence", True, "tensor of 2 or more beside it")
        if self.tp_comm_overlap and self.tensor == 1:
            raise problem("tp_comm_overlap", True, "tensor of 2 or more beside it, or false")
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise problem("virtual_pipeline", self.virtual_pipeline, "1 with pipeline 1, or pipeline of 2 or more")
        for key in ("distributed_optimizer", "overlap_grad_reduce"):
            if self.overlap_param_gather and not getattr(self, key):
                raise problem("overlap_param_gather", True, f"{key} true beside it, or false")
        return self

    @property
    def model_size(self) -> int:
        """Count the processes that hold one copy of the model."""
        return self.tensor * self.context * self.pipeline

    @property
    def num_stages(self) -> int:
        """Count the runs of layers that the model is cut into."""
        return self.pipeline * self.virtual_pipeline

    def recompute_of(self, block: str) -> Recompute:
        """Return what the backward pass computes again in layers of this block."""
        return self.recompute if isinstance(self.recompute, str) else self.recompute.get(block, "none")


class PrecisionConfig(Strict):
    """Number formats."""

    format: Literal["fp32", "bf16", "fp8"] = Field(
        "fp32",
        description="Parameters and activations; with bf16 the optimizer keeps fp32 copies of the parameters. fp8: as "
        "bf16, and linears of layers multiply numbers of 8 bits.",
    )
    recipe: Recipe = Field(
        "tensorwise",
        description="fp8: where scales come from. tensorwise: the largest value of a tensor. delayed: the largest "
        f"value of the last {AMAX_HISTORY} steps. blockwise: the largest value of each 128 values of activations and "
        "gradients, and of each 128 x 128 of weights. mxfp8: that of each 32 values.",
    )
    first_last_bf16: int = Field(
        0, ge=0, description="fp8: layers at the beginning, and as many at the end, whose linears stay in bf16."
    )
    skip: list[str] = Field(
        [],
        description="fp8: linears that stay in bf16: all of a block (`attn`) or one of it (`attn.proj`); `*` is any "
        "text (`*.proj`).",
    )
    emulate: bool = Field(
        False,
        description="fp8: round values as FP8 hardware does and multiply them in fp32, which works on any device; "
        "false: multiply in FP8, by Transformer Engine on a GPU.",
    )
    matmul: Literal["float32", "bf16"] = Field(
        "float32",
        description="fp32 on a CPU: factors of products of matrices. bf16: rounded to bf16 and summed in fp32, which "
        "is faster on processors with AMX-BF16, or an AVX512-BF16 that oneDNN uses, and changes losses by that "
        "rounding.",
    )
    change_on_resume: bool = Field(
        False,
        description="Let a resumed run change the keys above, between bf16 and fp8 too; otherwise it keeps them.",
    )

    @property
    def parameter_format(self) -> Literal["fp32", "bf16"]:
        """Return the format of parameters and activations."""
        return "bf16" if self.format == "fp8" else self.format

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of parameters and activations."""
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.parameter_format]

    @property
    def alignment(self) -> int:
        """Return what the sizes of a product of FP8 numbers must be multiples of."""
        return FP8_ALIGNMENT[self.recipe]

"""The `model` section of a run's config."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from hybridtron.config.schema import Strict, dispatch, problem
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.identity import block_identity
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.residual.config import RESIDUALS, PlainResidualConfig, ResidualConfig
from hybridtron.pattern import Pattern, PatternError, is_name, parse
from hybridtron.tensors import Init, TensorSpec

Block = Annotated[SerializeAsAny[MixerConfig], BeforeValidator(lambda value: dispatch(value, MIXERS))]

Residual = Annotated[SerializeAsAny[ResidualConfig], BeforeValidator(lambda value: dispatch(value, RESIDUALS))]


def without_dropped(blocks: Any) -> Any:
    """Return blocks as a config writes them without those that are null, by which a file drops one of its base."""
    return {name: block for name, block in blocks.items() if block is not None} if isinstance(blocks, dict) else blocks


class MTPConfig(Strict):
    """Multi-token prediction in training: modules after the last layer predict further tokens (DeepSeek-V3)."""

    depth: int = Field(1, ge=1, description="Further tokens that are predicted at each position.")
    pattern: str = Field(description="Layers of a module, by block name, such as `attn moe`.")
    shared: bool = Field(False, description="Use one module for all depths (Nemotron 3.5).")
    loss_weight: float = Field(
        0.3, gt=0, description="Weight of the mean loss of all depths, which is added to the model's in training."
    )


class ModelConfig(Strict):
    """What the model is. Nothing here depends on how it is laid out over processes."""

    hidden_size: int = Field(ge=1, description="Width of the residual stream.")
    blocks: dict[str, Block] = Field(
        description="Named layers; each has a `type` and that type's keys. `NAME: null` drops one of a base."
    )
    pattern: str = Field(description="Order of the layers by block name, such as `3*(mamba mlp) attn mlp`.")
    vocab_size: int = Field(
        0, ge=0, description="Size of the embedding; 0: that of the tokenizer, rounded up to a multiple of 64."
    )
    tie_embeddings: bool = Field(False, description="Use the embedding as the output projection too.")
    norm_eps: float = Field(1e-5, gt=0, description="Added to the mean square in every RMS norm.")
    zero_centered_norms: bool = Field(
        False,
        description="The norms of layers and the final norm multiply by 1 + weight, with weights that begin at zero "
        "(Gemma, Qwen3-Next); norms inside a layer have keys of their own.",
    )
    embedding_multiplier: float = Field(1.0, gt=0, description="Multiplies the embedded tokens (Granite, muP).")
    residual_multiplier: float = Field(
        1.0, gt=0, description="Multiplies what each layer adds to the residual stream (Granite)."
    )
    residual: Residual = Field(
        default_factory=PlainResidualConfig, description="How layers read from and write to the residual stream."
    )
    logits_scaling: float = Field(1.0, gt=0, description="Divides the logits (Granite).")
    mtp: MTPConfig | None = Field(
        None,
        description="Predict further tokens in training, from the last layer's output and the embeddings of the tokens "
        "between; evaluation and generation do not use it. null: do not.",
    )
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    backend: Literal["auto", "torch", "megatron", "transformer_engine"] = Field(
        "auto",
        description="Who builds the layers: plain PyTorch, megatron-core's parallel modules or Transformer Engine's. "
        "auto: Transformer Engine for bf16 on CUDA where it is installed, otherwise megatron-core.",
    )

    @model_validator(mode="before")
    @classmethod
    def _give_blocks_their_width(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("blocks"), dict):
            return data
        data = {**data, "blocks": without_dropped(data["blocks"])}
        width = data.get("hidden_size")
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            return data  # refused by the field itself
        blocks = {}
        for name, block in data["blocks"].items():
            if isinstance(block, dict):
                if "hidden_size" in block:
                    raise problem(f"blocks.{name}.hidden_size", block["hidden_size"], "nothing: the model's is used")
                block = {**block, "hidden_size": width}
            blocks[name] = block
        return {**data, "blocks": blocks}

    @model_validator(mode="after")
    def _pattern_names_blocks(self) -> ModelConfig:
        for name in self.blocks:
            if not is_name(name):
                raise problem(f"blocks.{name}", name, "letters, digits and _, beginning with none of the digits")
        self.parsed_pattern  # noqa: B018
        return self

    @model_validator(mode="after")
    def _residual_fits(self) -> ModelConfig:
        self.residual.check(self)
        return self

    @model_validator(mode="after")
    def _mtp_has_layers(self) -> ModelConfig:
        if self.mtp is None:
            return self
        try:
            pattern = parse(self.mtp.pattern, known_names=list(self.blocks))
        except PatternError as error:
            raise PatternError(f"mtp.{error}") from None
        if pattern.cuts:
            raise problem("mtp.pattern", self.mtp.pattern, "no '|', as it is a part of the last pipeline stage")
        for name in pattern.layers:
            if self.blocks[name].carries:
                raise problem("mtp.pattern", self.mtp.pattern, f"no {name}, which reads values of earlier layers")
        return self

    @model_validator(mode="after")
    def _carried_values_fit(self) -> ModelConfig:
        made: dict[str, tuple[str, int]] = {}
        for name in dict.fromkeys(self.layer_names):
            for value, width in self.blocks[name].carries.items():
                first, expected = made.setdefault(value, (name, width))
                if width != expected:
                    raise problem(f"blocks.{name}", f"{value} of {width} channels", f"{expected}, as in {first}")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the keys that decide what is measured, without those that came later and have their default."""
        dumped = self.model_dump(mode="json", serialize_as_any=True)
        kept = {k: value for k, value in dumped.items() if k in _FIRST_KEYS or getattr(self, k) != _default(k)}
        return kept | {"blocks": {name: block_identity(block) for name, block in dumped["blocks"].items()}}

    @cached_property
    def parsed_pattern(self) -> Pattern:
        return parse(self.pattern, known_names=list(self.blocks))

    @property
    def norm_spec(self) -> TensorSpec:
        """Return the declaration of the weight of a norm over the hidden size."""
        return TensorSpec((self.hidden_size,), Init("zeros" if self.zero_centered_norms else "ones"), decay=False)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Return the block name of each layer, in order."""
        return self.parsed_pattern.layers

    @cached_property
    def mtp_layer_names(self) -> tuple[str, ...]:
        """Return the block name of each layer of a module for multi-token prediction, in order."""
        return parse(self.mtp.pattern, known_names=list(self.blocks)).layers if self.mtp else ()

    @property
    def mtp_modules(self) -> int:
        """Return the number of modules for multi-token prediction that have parameters."""
        return 0 if self.mtp is None else 1 if self.mtp.shared else self.mtp.depth

    @property
    def used_blocks(self) -> tuple[str, ...]:
        """Return the names of the blocks that have layers, those for multi-token prediction included."""
        return tuple(dict.fromkeys((*self.layer_names, *self.mtp_layer_names)))

    @property
    def last_stage_embeds(self) -> bool:
        """Return whether the last pipeline stage needs the embedding, for its logits or for multi-token prediction."""
        return self.tie_embeddings or self.mtp is not None

    def layer_block(self, index: int) -> MixerConfig:
        """Return the config of layer `index`: that of its block at this depth (`MixerConfig.for_layer`)."""
        kinds = [self.blocks[name].kind for name in self.layer_names]
        before, count = (some.count("sequence") for some in (kinds[:index], kinds))
        return self.blocks[self.layer_names[index]].for_layer(before, count)


# Keys of the section that are part of its identity at their default too.
_FIRST_KEYS = frozenset(
    """hidden_size blocks pattern vocab_size tie_embeddings norm_eps zero_centered_norms embedding_multiplier
    residual_multiplier logits_scaling init_std backend""".split()  # noqa: SIM905
)


def _default(key: str) -> Any:
    return ModelConfig.model_fields[key].get_default(call_default_factory=True)

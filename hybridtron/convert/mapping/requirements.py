"""Checks of `to_theirs`: what of a model an architecture can express, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from hybridtron.config.type_words import value_text
from hybridtron.convert.mapping.layers import block_of
from hybridtron.errors import UserError
from hybridtron.mixers.contract import MixerConfig
from hybridtron.model.config import ModelConfig

# Of the `model` section: what every architecture has, and what changes no result of a trained model.
_MODEL = ("hidden_size", "blocks", "pattern", "vocab_size", "tie_embeddings", "norm_eps", "init_std", "backend")


def cannot_express(architecture: str, model: ModelConfig, layer: int, why: str) -> NoReturn:
    """Raise UserError for a layer, counted from 0, that the architecture does not have."""
    name, kind = model.layer_names[layer], block_of(model, layer).type
    raise UserError(f"{architecture} cannot express layer {layer} ({name}, {kind}): {why}")


def require_model(architecture: str, model: ModelConfig, *keys: str) -> None:
    """Raise UserError where a key of the `model` section, besides the common ones and `keys`, is not at its default."""
    for key, field in type(model).model_fields.items():
        if key not in (*_MODEL, *keys) and getattr(model, key) != field.get_default(call_default_factory=True):
            raise UserError(f"{architecture} cannot express model.{key} = {value_text(getattr(model, key))}")


def require_layer(architecture: str, model: ModelConfig, layer: int, kind: str, *keys: str) -> Any:
    """Return the block of a layer. Raise UserError where it is of another type, or a key besides `keys`, and besides
    those that change speed alone, is not at its default."""
    block = block_of(model, layer)
    if block.type != kind:
        cannot_express(architecture, model, layer, f"expected {kind} here")
    facts = block.facts()
    for key, field in type(block).model_fields.items():
        free = key in ("type", "hidden_size", *keys) or (key in facts and facts[key].speed_only)
        if not free and getattr(block, key) != field.get_default(call_default_factory=True):
            cannot_express(architecture, model, layer, f"its {key} is {value_text(getattr(block, key))}")
    return block


def require_equal(architecture: str, model: ModelConfig, layers: Iterable[int], *but: str) -> None:
    """Raise UserError for the first of these layers whose block differs from that of the first one, `but` aside."""
    first: MixerConfig | None = None
    for layer in layers:
        block = block_of(model, layer)
        first = first or block
        for key in type(block).model_fields:
            if key not in but and getattr(block, key) != getattr(first, key, None):
                own, expected = value_text(getattr(block, key)), value_text(getattr(first, key, None))
                why = f"its {key} is {own}; expected {expected}, as the first such layer has"
                cannot_express(architecture, model, layer, why)


def require_keys(architecture: str, model: ModelConfig, layer: int, **expected: Any) -> None:
    """Raise UserError unless the block of a layer has these values."""
    block = block_of(model, layer)
    for key, value in expected.items():
        if getattr(block, key) != value:
            cannot_express(
                architecture,
                model,
                layer,
                f"its {key} is {value_text(getattr(block, key))}; expected {value_text(value)}",
            )


def require_equal_biases(architecture: str, model: ModelConfig, layer: int) -> None:
    """Raise UserError for attention that has biases on one side only: theirs has them on both, or on none."""
    block = block_of(model, layer)
    if block.qkv_bias != block.proj_bias:
        cannot_express(architecture, model, layer, "it has qkv_bias without proj_bias, or the reverse")

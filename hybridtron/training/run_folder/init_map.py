"""Read `train.init_map` and the keys beside it: layers and blocks of two models as names of their parameters."""

from __future__ import annotations

from collections.abc import Mapping

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.initial_weights import WeightRules
from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors
from hybridtron.training.sections.train import TrainConfig


def weight_rules(train: TrainConfig, model: ModelConfig, source: ModelConfig) -> WeightRules:
    """Return how parameters of a model are matched with those of the model of train.init_from.

    Raises UserError for a layer or a block that a model does not have, for layers of different types, and where a block
    has more layers than the source's.
    """
    prefixes: dict[str, str | None] = {}
    named = {key for key in train.init_map if key not in model.blocks}
    for key, value in train.init_map.items():
        if key in model.blocks:
            pairs = _block_pairs(key, value, model, source)
            prefixes |= {layer: there for layer, there in pairs.items() if layer not in named}
        else:
            _require_layer(f"train.init_map: {key}", key, model)
            if value is not None:
                _require_layer(f"train.init_map.{key} = {value}", value, source)
                _require_same_type(key, value, model, source)
            prefixes[key] = value
    return WeightRules(
        prefixes,
        maps_layers=any(key.startswith("layers.") for key in prefixes),
        missing=_with_layers(train.init_missing, model),
        left_over=_with_layers(train.init_left_over, source),
        vocabulary=train.init_vocabulary,
    )


def _layers(block: str, model: ModelConfig) -> list[str]:
    """Return the names of the layers of a block, in order."""
    return [f"layers.{i}" for i, name in enumerate(model.layer_names) if name == block]


def _with_layers(names: list[str], model: ModelConfig) -> tuple[str, ...]:
    """Return the names with those of layers in place of their block's."""
    return tuple(each for name in names for each in (_layers(name, model) if name in model.blocks else [name]))


def _block_pairs(
    block: str, source_block: str | None, model: ModelConfig, source: ModelConfig
) -> Mapping[str, str | None]:
    """Return the layers of a block with those of the source's block, the first with the first."""
    mine = _layers(block, model)
    if source_block is None:
        return dict.fromkeys(mine)
    place = f"train.init_map.{block} = {source_block}"
    if source_block not in source.layer_names:
        raise UserError(
            f"{place}: expected a block of init_from: {one_of(source_block, dict.fromkeys(source.layer_names))}"
        )
    theirs = _layers(source_block, source)
    if len(mine) > len(theirs):
        raise UserError(
            f"{place}: {len(mine)} layers of {block} here, {len(theirs)} of {source_block} there; expected at least as "
            f"many there, or each layer by name, such as {mine[-1]}: {theirs[-1]}"
        )
    if mine:
        _require_same_type(mine[0], theirs[0], model, source)
    return dict(zip(mine, theirs, strict=False))


def _index(name: str) -> int | None:
    """Return the number of the layer that a parameter's name begins with; None for names outside layers."""
    words = name.split(".")
    return int(words[1]) if words[0] == "layers" and len(words) > 1 and words[1].isdecimal() else None


def _require_layer(place: str, name: str, model: ModelConfig) -> None:
    """Raise UserError where a name is that of no layer, and of nothing outside the layers."""
    index, count = _index(name), len(model.layer_names)
    if index is not None:
        if index >= count:
            raise UserError(f"{place}: expected layers.0 to layers.{count - 1}")
        return
    others = [first for first in dict.fromkeys(n.split(".")[0] for n in model_tensors(model)) if first != "layers"]
    if name.split(".")[0] not in others:
        choices = [*model.blocks, *others, f"layers.{count - 1}"]
        raise UserError(f"{place}: expected a layer, such as layers.0, or {one_of(name, choices)}")


def _require_same_type(name: str, there: str, model: ModelConfig, source: ModelConfig) -> None:
    """Raise UserError where two layers are of different types, whose parameters may have the same names."""
    mine, theirs = _index(name), _index(there)
    if mine is None or theirs is None:
        return
    types = [config.blocks[config.layer_names[i]].type for config, i in ((model, mine), (source, theirs))]
    if types[0] != types[1]:
        raise UserError(
            f"train.init_map.{name} = {there}: is of type {types[1]} there; expected {types[0]}, as {name} here"
        )

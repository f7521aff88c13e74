"""The models that are trained: a language model, and for compression an auto-encoder, around the same layers.

The auto-encoder decodes from the state at the last position, to which it adds the sines and cosines of each position
to rebuild: norm, linear, GELU, twice, without a residual (mad-lab, model/auto_encoder.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hybridtron.backends.torch import TorchBackend
from hybridtron.mixers.rwkv6.config import Ramp
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initial_value
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.layer import Layer
from hybridtron.model.residual import plain
from hybridtron.model.residual.stream import Stream
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import Init, InitialValue, TensorSpec

_AUTOENCODER_STD = 0.02
_FEATURE_MAPS = ".feature_weight"
# Linear maps of mad-lab's that are declared here with initial values of their own.
_LINEAR_MAPS = (_FEATURE_MAPS, ".dt_weight", *(f".filter.{name}_weight" for name in ("input", "inner", "output")))
_DECODER_LAYERS = 2
_LARGEST_PERIOD = 10000.0


def proxy_tensors(config: ModelConfig, autoencoder: bool, normal_init: bool = False) -> dict[str, TensorSpec]:
    """List every parameter by its name in the built model, with mad-lab's initial values.

    Linear maps of the language model start as PyTorch's own do, uniform within 1 / sqrt(inputs); those of the
    auto-encoder normal with standard deviation 0.02. Biases start at zero, those of filters' networks too; mixtures of
    RWKV-6 fall from 1 by one part of the width a channel. With `normal_init` all linear maps start normal, those of
    filters and step sizes too, and all their biases at zero, as in mad-lab before December 2024.
    """
    width = config.hidden_size
    specs = model_tensors(config)
    specs["head.bias"] = TensorSpec((config.vocab_size,), Init("zeros"), decay=False)
    if autoencoder:
        for i in range(_DECODER_LAYERS):
            specs[f"decoder.{i}.0.weight"] = TensorSpec((width,), Init("ones"), decay=False)
            specs[f"decoder.{i}.1.weight"] = TensorSpec((width, width), Init("input"))
            specs[f"decoder.{i}.1.bias"] = TensorSpec((width,), Init("zeros"), decay=False)
    return {name: replace(spec, init=_init(name, specs, autoencoder, normal_init)) for name, spec in specs.items()}


def _init(name: str, specs: dict[str, TensorSpec], autoencoder: bool, normal_init: bool) -> Init | InitialValue:
    spec = specs[name]
    if ".filter." in name and name.endswith("_bias"):
        return Init("zeros")
    if name.endswith(".bonus"):
        return _zigzag
    if isinstance(spec.init, Ramp) and ".mix_" in name:
        return replace(spec.init, reaches_high=False)
    is_linear = isinstance(spec.init, Init) and spec.init.kind in ("input", "output")
    if normal_init and name.endswith(".dt_bias") and f"{name.removesuffix('bias')}weight" in specs:
        return Init("zeros")
    if (autoencoder and (is_linear or name.endswith(_FEATURE_MAPS))) or (
        normal_init and (is_linear or name.endswith(_LINEAR_MAPS))
    ):
        return Init("normal", 0.0, _AUTOENCODER_STD)
    if not is_linear:
        return spec.init
    bound = spec.shape[-1] ** -0.5
    return Init("uniform", -bound, bound)


def _zigzag(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return 0, 0.1, -0.1, 0, ..., mad-lab's initial bonus of RWKV-6."""
    return ((torch.arange(shape[0]) + 1) % 3 - 1) * 0.1


def initial_values(config: ModelConfig, autoencoder: bool, seed: int, normal_init: bool = False) -> dict[str, Tensor]:
    """Draw a value for every parameter, a function of the seed and the parameter's name."""
    specs = proxy_tensors(config, autoencoder, normal_init)
    return {name: initial_value(config, name, spec, seed) for name, spec in specs.items()}


class ProxyModel(LanguageModel):
    """Token ids [b, s] -> logits [b, s, vocabulary]; uninitialised."""

    def __init__(self, config: ModelConfig, autoencoder: bool, device: torch.device | str = "cpu") -> None:
        backend = TorchBackend(device=device, norm_eps=config.norm_eps)
        super().__init__(config, backend)
        specs = proxy_tensors(config, autoencoder)
        self.width, self.autoencoder = config.hidden_size, autoencoder
        self.first_token_wise = _first_token_wise(self.layer_list)
        self.head = backend.column_linear(specs["head.weight"], specs["head.bias"])
        if autoencoder:
            self.decoder = nn.ModuleList(
                nn.Sequential(
                    backend.norm(specs[f"decoder.{i}.0.weight"]),
                    backend.column_linear(specs[f"decoder.{i}.1.weight"], specs[f"decoder.{i}.1.bias"]),
                    nn.GELU(),
                )
                for i in range(_DECODER_LAYERS)
            )

    def forward(self, tokens: Tensor, scored: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Compute logits [b, s, vocabulary], or at `scored`, numbers of places in the flattened [s, b], alone: [scored,
        vocabulary]. Then the last layers that map every token by itself run for these alone. No auto-encoder takes it.
        """
        stream = self.begin(self.embedding(tokens))  # [s, b, h]
        layers = self.layer_list
        for layer in layers[: self.first_token_wise]:
            stream = layer(stream)
        if scored is not None:
            stream = _at(stream, scored)
        for layer in layers[self.first_token_wise :]:
            stream = layer(stream)
        x = self.end(stream)
        if self.autoencoder:
            x = x[-1] + position_code(len(x), self.width, x).unsqueeze(1)
            for step in self.decoder:
                x = step(x)
        logits: Tensor = self.head(self.final_norm(x)).transpose(0, 1)
        return logits if scored is None else logits[0]


def _first_token_wise(layers: Sequence[Layer]) -> int:
    """Return the place of the first layer from which on all map every token by itself."""
    for index in range(len(layers), 0, -1):
        layer = layers[index - 1]
        if not layer.mixer.config.token_wise or type(layer.residual) is not plain.Layer:
            return index
    return 0


def _at(stream: Stream, places: Tensor) -> Stream:
    """Return the stream [places, 1, ...] at places of the flattened [s, b]."""
    return Stream(tuple(state.flatten(0, 1).index_select(0, places).unsqueeze(1) for state in stream.states), {})


def position_code(length: int, width: int, like: Tensor) -> Tensor:
    """Compute sines, then cosines, of each position times frequencies from 1 to 1 / 10,000: [length, width]."""
    half = width // 2
    frequencies = _LARGEST_PERIOD ** (-torch.arange(half, device=like.device) / max(half - 1, 1))
    angles = torch.arange(length, device=like.device).unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)

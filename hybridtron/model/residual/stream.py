"""What travels from layer to layer, and how it is packed into the one tensor that travels between pipeline stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hybridtron.model.config import ModelConfig
from hybridtron.model.stage import Stage

States = tuple[Tensor, ...]


class Stream(NamedTuple):
    """The residual stream between two layers, for all tokens of a process ([s, b, ...]) or for one token ([b, ...]).

    `states`: those of the residual topology; the first is the one that layers add to. `carried`: the values that
    earlier layers made for later ones, by name (`MixerConfig.carries`).
    """

    states: States
    carried: Mapping[str, Tensor]


@dataclass(frozen=True)
class Packing:
    """How a process packs a stream into one tensor [s, b, width].

    Carried values are cut over the `tensor` tensor-parallel processes. With `sequence` parallelism states have a run of
    the tokens that carried values have: every `tensor` rows of a value share a row of the packed tensor. `width` 0: as
    wide as the stream is.
    """

    config: ModelConfig
    tensor: int = 1
    sequence: bool = False
    width: int = 0

    def pack(self, stream: Stream, layer: int) -> Tensor:
        """Return the stream before layer number `layer` as one tensor, filled up with zeros; a single state of that
        width as it is. Carried values that no layer reads any more stay behind."""
        parts = [*stream.states]
        rows = len(parts[0])
        values = [stream.carried[name] for name in carried_at(self.config, layer)]
        parts += [value.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2) for value in values]
        missing = self.width - sum(part.shape[-1] for part in parts)
        if missing > 0:
            parts.append(parts[0].new_zeros(*parts[0].shape[:2], missing))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def unpack(self, packed: Tensor, layer: int) -> Stream:
        """Take apart what `pack` made of the stream before layer number `layer`."""
        values, widths = carried_at(self.config, layer), self._states(layer)
        shares = self._shares(values)
        used = sum(widths) + sum(shares)
        if [used] == widths == [packed.shape[-1]]:
            return Stream((packed,), {})
        parts = packed.split([*widths, *shares, packed.shape[-1] - used], -1)
        ways = self.tensor if self.sequence else 1
        carried = {
            name: value.unflatten(-1, (ways, -1)).transpose(1, 2).flatten(0, 1)
            for name, value in zip(values, parts[len(widths) : -1], strict=True)
        }
        return Stream(tuple(parts[: len(widths)]), carried)

    def widest(self, stages: Sequence[Stage]) -> int:
        """Return the width of the widest stream between two of the stages; that of a single stage's input."""
        starts = [stage.start for stage in stages[1:]] or [0]
        return max(sum((*self._states(start), *self._shares(carried_at(self.config, start)))) for start in starts)

    def _states(self, layer: int) -> list[int]:
        """Return the width of each state before layer number `layer`."""
        return self.config.residual.state_widths(self.config, layer)

    def _shares(self, values: Mapping[str, int]) -> list[int]:
        """Return what each carried value takes of the width."""
        return [channels if self.sequence else channels // self.tensor for channels in values.values()]


def carried_at(config: ModelConfig, layer: int) -> dict[str, int]:
    """Return the values that a layer before number `layer` makes and it or a later one reads: name -> channels."""
    blocks = [config.blocks[name] for name in config.layer_names]
    read = {name for block in blocks[layer:] for name in block.carries}
    made = {name: width for block in blocks[:layer] for name, width in block.carries.items()}
    return {name: width for name, width in made.items() if name in read}

"""A small mixer that mixes its values with those of the first layer of its kind."""

from typing import Literal

import torch

from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.mixer import Mixer
from hybridtron.tensors import Init, PackedPart, TensorSpec


class CarryingConfig(MixerConfig):
    type: Literal["carrying"] = "carrying"
    channels: int = 8

    @property
    def carries(self):
        return {"first_value": self.channels}

    def tensors(self):
        parts = (PackedPart("v", self.channels, key="channels"),)
        return {
            "in_proj.weight": TensorSpec((self.channels, self.hidden_size), Init("input"), parts),
            "out_proj.weight": TensorSpec((self.hidden_size, self.channels), Init("output"), parts, axis=1),
        }

    def state_size(self, seq_len):
        return self.channels

    def build(self, backend):
        return Carrying(self, backend)


class Carrying(Mixer):
    def mixed(self, x, carried):
        value = self.in_proj(x)
        first = carried.get("first_value")
        return (value, {**carried, "first_value": value}) if first is None else (value * first.tanh(), carried)

    def core(self, packed):
        return packed.cumsum(0)

    def forward(self, x, documents=None, carried=None):
        value, carried = self.mixed(x, carried)
        return self.project_out(self.over_sequence(value, documents)), carried

    def initial_state(self, batch):
        return torch.zeros(batch, self.config.channels)

    def prefill(self, x, state, carried):
        value, carried = self.mixed(x, carried)
        sums = state + value.cumsum(0)
        return self.project_out(sums), sums[-1], carried

    def step(self, x, state, carried):
        value, carried = self.mixed(x.unsqueeze(0), carried)
        state = state + value[0]
        return self.project_out(state.unsqueeze(0))[0], state, carried

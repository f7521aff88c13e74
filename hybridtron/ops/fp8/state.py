"""What the FP8 linears of a model remember between steps: largest values and statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridtron.ops.fp8.formats import Quantized, count_lost
from hybridtron.ops.fp8.recipes import RECIPES, quantize, quantize_blocks

ROLES = ("x", "weight", "grad")  # operands of a linear's three products


class FP8State:
    """Amax histories and statistics of all FP8 linears of a model, in every process the same after `end_step`.

    A linear has a slot for each role, or with experts one for each role and expert. While `collects` is set, the
    statistics of `peaks` and `counts` are added up.
    """

    def __init__(self, recipe: str, experts: Mapping[str, int], history_length: int, device: torch.device) -> None:
        """Begin with empty histories; `experts` gives, by name of the linear, the number of its weights."""
        self.recipe, self.spec = recipe, RECIPES[recipe]
        self.experts = dict(experts)
        self.starts: dict[str, int] = {}
        slots = 0
        for name, count in self.experts.items():
            self.starts[name] = slots
            slots += len(ROLES) * count
        self.history = torch.zeros(history_length, slots, device=device)  # latest step first
        self.amax = torch.zeros(slots, device=device)  # of the step that is running
        self.collects = False
        self.peaks = torch.zeros(len(self.experts), len(ROLES), device=device)  # largest absolute values
        self.counts = torch.zeros(len(self.experts), len(ROLES), 3, dtype=torch.float64, device=device)

    def slots(self, name: str, role: str) -> slice:
        """Return where the amax of a linear's operand lies, one for each expert."""
        count = self.experts[name]
        start = self.starts[name] + ROLES.index(role) * count
        return slice(start, start + count)

    def end_step(self, reduce: Callable[[Tensor], None], applied: bool) -> None:
        """Take the amax of a step into the histories, where the step was applied.

        `reduce` makes it, in place, the largest of all processes.
        """
        if self.spec.delayed and applied:
            reduce(self.amax)
            self.history.copy_(torch.cat([self.amax.unsqueeze(0), self.history[:-1]]))  # where CUDA graphs read it
        self.amax.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return recipe and histories: by linear [steps, roles, experts]."""
        histories = {}
        for name, count in self.experts.items() if self.spec.delayed else ():
            start = self.starts[name]
            own = self.history[:, start : start + len(ROLES) * count]
            histories[name] = own.unflatten(1, (len(ROLES), count)).cpu().clone()
        return {"recipe": self.recipe, "amax_history": histories}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the histories of linears that a state names; others begin empty. Raises ValueError for another
        content."""
        histories = state.get("amax_history")
        if not isinstance(histories, Mapping):
            raise ValueError("FP8 state has no amax_history")
        self.history.zero_()
        for name, count in self.experts.items() if self.spec.delayed else ():
            history = histories.get(name)
            if history is None:
                continue
            expected = (len(self.history), len(ROLES), count)
            if not isinstance(history, Tensor) or tuple(history.shape) != expected or not history.isfinite().all():
                raise ValueError(f"amax_history of {name} is not finite numbers of shape {expected}")
            start = self.starts[name]
            self.history[:, start : start + len(ROLES) * count] = history.flatten(1)

    def take_statistics(self, sum_up: Callable[[Tensor], None], reduce: Callable[[Tensor], None]) -> dict[str, Any]:
        """Return, by linear and role, amax and the shares of saturated and flushed values since the last call.

        `sum_up` and `reduce` make a tensor, in place, the sum and the largest of all processes.
        """
        sum_up(self.counts)
        reduce(self.peaks)
        shares = (self.counts[..., :2] / self.counts[..., 2:].clamp(min=1)).tolist()
        peaks = self.peaks.tolist()
        self.counts.zero_()
        self.peaks.zero_()
        return {
            name: {
                role: {"amax": peaks[i][j], "saturated": shares[i][j][0], "flushed": shares[i][j][1]}
                for j, role in enumerate(ROLES)
            }
            for i, name in enumerate(self.experts)
        }


@dataclass(frozen=True)
class Operand:
    """One operand of a linear in this process, which holds the weights `own` of the experts.

    `reduce` makes a tensor, in place, the largest of the processes that hold other parts of the same operand.
    """

    state: FP8State
    linear: str
    role: str
    own: slice
    reduce: Callable[[Tensor], None]

    def quantize(self, groups: Sequence[Tensor], is_recorded: bool) -> list[tuple[Quantized, Quantized]]:
        """Round the matrices of this process's experts to FP8, for products over columns and for those over rows.

        Where it `is_recorded`, amax and statistics count.
        """
        state, spec, dtype = self.state, self.state.spec, self.state.spec.dtype(self.role)
        wide = [group.float() for group in groups]
        if spec.block:
            over_columns, over_rows = spec.blocks(self.role)
            pairs = []
            for x in wide:
                first = quantize_blocks(x, over_columns, spec, dtype)
                again = first if over_rows == over_columns else quantize_blocks(x, over_rows, spec, dtype)
                pairs.append((first, again))
        else:
            scales = spec.scale(self._amax(wide, is_recorded), dtype)
            pairs = [(one, one) for one in map(quantize, wide, scales[self.own].unbind(), [dtype] * len(wide))]
        if state.collects and is_recorded:
            self._count(wide, [first for first, _ in pairs])
        return pairs

    def _amax(self, groups: Sequence[Tensor], is_recorded: bool) -> Tensor:
        """Return the largest absolute values that scales follow from, of each expert."""
        state, slots = self.state, self.state.slots(self.linear, self.role)
        amax = torch.zeros_like(state.amax[slots])
        amax[self.own] = torch.stack([_largest(x) for x in groups])
        self.reduce(amax)
        if is_recorded:
            torch.maximum(state.amax[slots], amax.nan_to_num(0.0, 0.0, 0.0), out=state.amax[slots])
        if not state.spec.delayed:
            return amax
        past = state.history[:, slots].amax(0)
        return torch.where(past > 0, past, amax)  # no history yet: as tensorwise

    def _count(self, groups: Sequence[Tensor], quantized: Sequence[Quantized]) -> None:
        """Add to the statistics."""
        index, role = list(self.state.experts).index(self.linear), ROLES.index(self.role)
        peak = torch.stack([_largest(x) for x in groups]).max()
        peaks, counts = self.state.peaks, self.state.counts
        peaks[index, role] = torch.maximum(peaks[index, role], peak)
        for x, q in zip(groups, quantized, strict=True):
            counts[index, role] += count_lost(x, q)


def _largest(x: Tensor) -> Tensor:
    """Return the largest absolute value; 0 of nothing."""
    return torch.linalg.vector_norm(x, torch.inf) if x.numel() else x.new_zeros(())

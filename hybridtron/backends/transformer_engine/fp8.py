"""FP8 linears of Transformer Engine, and what they remember between steps.

Recipes other than `delayed` are entered by each linear for itself, so that a recomputed one enters its recipe again.
`delayed` takes one region around a forward pass of the model, at whose end Transformer Engine updates all scales; the
linears that stay in bf16 leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import transformer_engine.pytorch as te
from torch import Tensor

from hybridtron.backends.transformer_engine.backend import Linear
from hybridtron.backends.transformer_engine.recipes import make_recipe
from hybridtron.ops.fp8.formats import E4M3, E5M2, LARGEST
from hybridtron.tensors import TensorSpec

ROLES = {"x": E4M3, "weight": E4M3, "grad": E5M2}
_LARGEST = torch.tensor([LARGEST[number_format] for number_format in ROLES.values()])


class TransformerEngineFP8:
    """The FP8 linears of the runs of layers in one process.

    Projections of experts stay in bf16. The largest values of `delayed` are those of all processes of a pipeline stage
    (`stage_group`), per micro-batch; those of a step that is not applied count too.
    """

    def __init__(
        self,
        chunks: Sequence[Any],
        linears: Mapping[str, TensorSpec],
        recipe: str,
        history: int,
        alignment: int,
        stage_group: dist.ProcessGroup,
    ) -> None:
        """Make the linears of the chunks multiply in FP8; `linears` are those of the whole model, as name and weight.

        Without gradients, numbers of tokens that are no multiple of `alignment` are multiplied in bf16.
        """
        names = [name for name, spec in linears.items() if not spec.experts]
        te_recipe, delayed = make_recipe(recipe, history), recipe == "delayed"
        region = partial(te.autocast, enabled=True, recipe=te_recipe, amax_reduction_group=stage_group)
        self.state = DelayedState(recipe, names if delayed else [], history)
        for chunk in chunks:
            if delayed:
                chunk.forward_context = partial(self._forward, region)
            for name, module in chunk.named_modules():
                if not isinstance(module, Linear):
                    continue
                if name not in names:
                    module.fp8_context = partial(te.autocast, enabled=False) if delayed else nullcontext
                elif delayed:
                    self.state.add(name, module, te_recipe)
                else:
                    module.fp8_context, module.fp8_alignment = region, alignment

    @contextmanager
    def _forward(self, region: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Enter the region of `delayed`. Passes without gradients leave no trace in the histories."""
        with region():
            yield
        if not torch.is_grad_enabled():
            self.state.forget_forward()

    def end_step(self, applied: bool) -> None:
        """Collect what the linears of all processes remember; all processes call this."""
        self.state.collect()

    def take_statistics(self) -> dict[str, Any]:
        """Return no statistics: Transformer Engine counts none."""
        return {}


class DelayedState:
    """Amax histories and scales of the linears of recipe `delayed`, in every process the same after `collect`.

    The histories have the form of `hybridtron.ops.fp8.state`, latest first.
    """

    def __init__(self, recipe: str, names: Sequence[str], history: int) -> None:
        self.recipe, self.names, self.length = recipe, list(names), history
        self.collects = False  # statistics, of which there are none
        self.held: dict[str, te.Linear] = {}
        self.collected: Tensor | None = None  # [history + 1, names x roles]: the last row are scales

    def add(self, name: str, module: te.Linear, recipe: Any) -> None:
        """Take in a linear of this process, and allocate its histories, which otherwise its first use does."""
        module.fp8_meta["num_gemms"] = 1
        module.fp8_meta["recipe"] = recipe
        module.init_fp8_meta_tensors(recipe)
        self.held[name] = module

    def forget_forward(self) -> None:
        """Drop the largest values of a forward pass that no update of the scales follows: those of an evaluation."""
        rows = [module.fp8_meta["scaling_fwd"].amax_history[0] for module in self.held.values()]
        if rows:
            torch._foreach_zero_(rows)

    @torch.no_grad()
    def collect(self) -> None:
        """Gather histories and scales of all processes."""
        if not self.names:
            return
        device = torch.device("cuda", torch.cuda.current_device())
        nothing = torch.zeros(self.length + 1, len(ROLES), device=device)
        self.collected = torch.cat([self._read(name) if name in self.held else nothing for name in self.names], 1)
        dist.all_reduce(self.collected, dist.ReduceOp.MAX)

    def state_dict(self) -> dict[str, Any]:
        """Return recipe, histories by linear [micro-batches, roles, 1] and scales [roles]."""
        if self.collected is None:
            return {"recipe": self.recipe, "amax_history": {}}
        columns = self.collected.nan_to_num(0.0, 0.0, 0.0).cpu().split(len(ROLES), 1)
        named = dict(zip(self.names, columns, strict=True))
        return {
            "recipe": self.recipe,
            "amax_history": {name: rows[:-1].unsqueeze(-1).clone() for name, rows in named.items()},
            "scale": {name: rows[-1].clone() for name, rows in named.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the histories of linears that a state names; others stay empty. Raises ValueError for another
        content.

        Each process reads those of all linears: without communication, since another may have failed to read.
        """
        histories, scales = state.get("amax_history"), state.get("scale", {})
        if not isinstance(histories, Mapping) or not isinstance(scales, Mapping):
            raise ValueError("FP8 state has no amax_history, or its scale is no table")
        empty = torch.cat([torch.zeros(self.length, len(ROLES)), torch.ones(1, len(ROLES))])
        columns = dict.fromkeys(self.names, empty)
        for name in self.names:
            if name not in histories:
                continue
            history = _checked(f"amax_history of {name}", histories[name], (self.length, len(ROLES), 1)).squeeze(-1)
            scale = torch.where(history.amax(0) > 0, _LARGEST / history.amax(0), 1.0)
            if name in scales:
                scale = _checked(f"scale of {name}", scales[name], (len(ROLES),))
            columns[name] = torch.cat([history, scale.unsqueeze(0)])
            columns[name][self.length - 1] = 0.0  # the row of the micro-batch to come
            if name in self.held:
                self._write(self.held[name], columns[name])
        self.collected = torch.cat(list(columns.values()), 1) if columns else None

    def _read(self, name: str) -> Tensor:
        """Return a linear's histories, latest first, and scales: [history + 1, roles]."""
        forward, backward = (self.held[name].fp8_meta[key] for key in ("scaling_fwd", "scaling_bwd"))
        history = torch.cat([forward.amax_history[:, :2], backward.amax_history[:, :1]], 1)
        scale = torch.cat([forward.scale[:2], backward.scale[:1]])
        return torch.cat([history.flip(0), scale.unsqueeze(0)])

    def _write(self, module: te.Linear, rows: Tensor) -> None:
        history, scale = rows[:-1].flip(0), rows[-1]
        forward, backward = (module.fp8_meta[key] for key in ("scaling_fwd", "scaling_bwd"))
        for target, source in ((forward, slice(0, 2)), (backward, slice(2, 3))):
            width = source.stop - source.start
            target.amax_history[:, :width].copy_(history[:, source])
            target.scale[:width].copy_(scale[source])


def _checked(what: str, value: object, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of a checkpoint in float32. Raises ValueError where it is none of that shape, or not finite."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.isfinite().all():
        raise ValueError(f"{what} is not finite numbers of shape {shape}")
    return value.float()

"""Several models of one shape trained as one: the cells of a grid, and seeds.

The trained parameters of a model are one row of a matrix [cells, parameters]. Where every layer can, the gradients of
all rows come from one pass (torch.func.vmap); else, or where that pays, from one pass for each. Either way a cell's
weights are those that training it alone would give, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from hybridtron.mad.models.module import ModuleModel, module_tensors
from hybridtron.mad.models.proxy_model import ProxyModel, proxy_tensors
from hybridtron.mad.tasks.protocol import IGNORE
from hybridtron.model.config import ModelConfig
from hybridtron.ops.cuda_graph import Recorder
from hybridtron.ops.elementwise.cross_entropy import cross_entropy

# Over all cells; what layers and what logits take in a pass is bounded by these.
TOKENS_PER_PASS = {"cpu": 1 << 14, "cuda": 1 << 18}
LOGITS_PER_PASS = {"cpu": 1 << 24, "cuda": 1 << 28}


class Stack:
    """Cells of one model on one device; `frozen` values are shared by all and not trained."""

    def __init__(
        self,
        config: ModelConfig | ModuleModel,
        autoencoder: bool,
        values: Sequence[Mapping[str, Tensor]],
        frozen: Mapping[str, Tensor] | None = None,
        *,
        device: str = "cpu",
        one_pass: bool = True,
        tokens_per_pass: int | None = None,
    ) -> None:
        """Hold `values`, the trained parameters of each cell by name. `one_pass`: gradients of all cells at once."""
        if isinstance(config, ModuleModel):
            self.model: nn.Module = config.build(device)
            specs = module_tensors(self.model)
        else:
            self.model = ProxyModel(config, autoencoder, device)
            specs = proxy_tensors(config, autoencoder)
        self.one_pass = one_pass
        # by itself, a cell's logits need not be made where none is scored
        self.picks_scored = not one_pass and isinstance(self.model, ProxyModel) and not autoencoder
        kind = torch.device(device).type
        self.tokens_per_pass = tokens_per_pass or min(TOKENS_PER_PASS[kind], LOGITS_PER_PASS[kind] // config.vocab_size)
        fixed = {name: value for name, value in values[0].items() if not specs[name].trained}
        self.frozen = {name: value.to(device) for name, value in {**fixed, **(frozen or {})}.items()}
        self.names = [name for name in values[0] if specs[name].trained]
        self.shapes = [values[0][name].shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.flat = torch.stack([torch.cat([cell[name].reshape(-1) for name in self.names]) for cell in values])
        self.flat = self.flat.to(device)  # [cells, parameters]
        decays = [torch.full((specs[name].numel,), float(specs[name].decay)) for name in self.names]
        self.decay = torch.cat(decays).to(device)  # 1 where a parameter decays
        self._recorder = Recorder()

    def __len__(self) -> int:
        return len(self.flat)

    def keep(self, cells: Tensor) -> None:
        """Drop all cells but these, [kept] indices."""
        self.flat = self.flat[cells]
        self._recorder.forget()

    def parameters(self, cell: int) -> dict[str, Tensor]:
        """Return all of one cell's parameters by name."""
        return {**self._by_name(self.flat[cell]), **self.frozen}

    def gradients(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the mean loss over scored positions [cells] and its gradient [cells, parameters].

        tokens and targets are [b, s] for all cells, or [cells, b, s]. They pass in runs of at most
        `tokens_per_pass` tokens, whose sums are added up. On CUDA the next call may overwrite both results.
        """
        if self.one_pass and self.flat.is_cuda:
            return self._recorder.run(self._sum_gradients, tokens, targets)
        return self._sum_gradients(tokens, targets)

    def _sum_gradients(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Compute what `gradients` returns."""
        count = (targets != IGNORE).sum((-2, -1)).to(self.flat.dtype)
        losses, gradients = torch.zeros(len(self), device=self.flat.device), torch.zeros_like(self.flat)
        function = grad_and_value(self._loss) if self.one_pass else self._gradient_and_loss
        for some, wanted in self._runs(tokens, targets):
            gradient, loss = self._per_cell(function, self.flat, some, wanted)
            losses += loss
            gradients += gradient
        return losses / count, gradients.div_(count.unsqueeze(-1) if count.dim() else count)

    @torch.no_grad()
    def predict(self, tokens: Tensor, targets: Tensor, cells: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens [c, b, s] and the mean loss over scored positions [c] of these or all cells.

        Where a position is not scored the token may be any.
        """
        rows = self.flat if cells is None else self.flat[cells]
        count = (targets != IGNORE).sum((-2, -1)).to(self.flat.dtype)
        losses = torch.zeros(len(rows), device=self.flat.device)
        predictions = []
        for some, wanted in self._runs(tokens, targets):
            loss, prediction = self._per_cell(self._loss_and_prediction, rows, some, wanted)
            losses += loss
            predictions.append(prediction)
        return torch.cat(predictions, 1), losses / count

    def _runs(self, tokens: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        cells_in_a_pass = len(self) if self.one_pass else 1
        rows = max(1, self.tokens_per_pass // (cells_in_a_pass * tokens.shape[-1]))
        return list(zip(tokens.split(rows, -2), targets.split(rows, -2), strict=True))

    def _per_cell(
        self, function: Callable[..., Any], rows: Tensor, tokens: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return two results of function(row, tokens, targets), each with a leading axis of rows."""
        if self.one_pass:
            axis = 0 if tokens.dim() == 3 else None
            return vmap(function, in_dims=(0, axis, axis))(rows, tokens, targets)
        results = [
            function(row, *(tensor[cell] if tensor.dim() == 3 else tensor for tensor in (tokens, targets)))
            for cell, row in enumerate(rows)
        ]
        first, second = zip(*results, strict=True)
        return torch.stack(first), torch.stack(second)

    def _loss(self, row: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum the loss over scored positions."""
        if (scored := self._scored(targets)) is None:
            return _summed_loss(self._logits(row, tokens), targets)
        return _summed_loss(self._logits(row, tokens, scored), targets.t().flatten()[scored])

    def _gradient_and_loss(self, row: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        row = row.detach().requires_grad_()
        loss = self._loss(row, tokens, targets)
        return torch.autograd.grad(loss, row)[0], loss.detach()

    def _loss_and_prediction(self, row: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if (scored := self._scored(targets)) is None:
            logits = self._logits(row, tokens)
            return _summed_loss(logits, targets), logits.argmax(-1)
        wanted = targets.t().flatten()
        logits = self._logits(row, tokens, scored)
        prediction = torch.zeros_like(wanted).index_copy(0, scored, logits.argmax(-1))
        return _summed_loss(logits, wanted[scored]), prediction.view(targets.t().shape).t()

    def _scored(self, targets: Tensor) -> Tensor | None:
        """Return where targets [b, s] are scored, as numbers of places in the flattened [s, b]; None where logits are
        made everywhere, as where none is scored: not every layer takes no tokens."""
        if not self.picks_scored:
            return None
        places = (targets.t().flatten() != IGNORE).nonzero().squeeze(1)
        return places if 0 < len(places) < targets.numel() else None

    def _logits(self, row: Tensor, *inputs: Tensor) -> Tensor:
        return functional_call(self.model, {**self._by_name(row), **self.frozen}, inputs)

    def _by_name(self, row: Tensor) -> dict[str, Tensor]:
        """Return one cell's parameters as views of its row [parameters]."""
        parts = row.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


def can_stack(config: ModelConfig | ModuleModel) -> bool:
    """Return whether every layer works under vmap; of a module it is not known."""
    if isinstance(config, ModuleModel):
        return False
    return all(config.blocks[name].capabilities.vmap for name in set(config.layer_names))


def _summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    nll, _ = cross_entropy(logits, targets.clamp(min=0))
    return (nll * (targets != IGNORE)).sum()

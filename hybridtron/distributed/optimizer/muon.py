"""Muon for the matrices of a model that is laid out over processes.

An update needs whole matrices. The processes of a tensor-parallel group gather the pieces of one matrix at a time, each
orthogonalises the whole and applies its own piece. With the distributed optimizer, whose flat shards cut some matrices,
the data-parallel processes that hold a piece of such a matrix first exchange their pieces; each orthogonalises only
matrices of which it holds something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch import Tensor

from hybridtron.distributed.optimizer.held_parameters import held_parameters
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.ops.newton_schulz import orthogonalize
from hybridtron.tensors import Shard, TensorSpec


@dataclass(frozen=True)
class Muon:
    """Settings of Muon, as `optimizer.muon` in the config has them."""

    lr_ratio: float = 1.0
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    scale: Literal["match_rms_adamw", "spectral"] = "match_rms_adamw"

    def factor(self, rows: int, columns: int) -> float:
        """Return what the orthogonal update of a matrix is multiplied by.

        `match_rms_adamw`: 0.2 sqrt(max(rows, columns)), with which the root mean square of an update is about that of
        AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2). `spectral`: sqrt(max(1, rows / columns)) (Jordan et al.
        2024).
        """
        if self.scale == "spectral":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))


class _Matrix(NamedTuple):
    """What the optimizer of this process updates of a parameter: elements [start, start + len(main)) of its piece."""

    spec: TensorSpec
    main: Tensor
    start: int
    momentum: Tensor  # mean of the gradients, as `main`
    group: dict[str, Any]  # with lr and weight_decay


class MuonBesideAdamW:
    """Updates the parameters of groups marked `muon` with Muon, and the others with the optimizer inside `wrapper`.

    Takes the place of that optimizer, once `wrapper` has divided the parameters among processes.
    """

    def __init__(
        self, wrapper: MegatronOptimizer, muon: Muon, parallel_context: ParallelContext, dtype: torch.dtype
    ) -> None:
        """Take over the parameters of `wrapper`; exchange and orthogonalise matrices in `dtype`."""
        self.adamw, self.muon, self.dtype = wrapper.optimizer, muon, dtype
        self.shards = parallel_context.shards
        self.tensor_groups = parallel_context.tensor_group, parallel_context.expert_groups.tensor
        self.param_groups: list[dict[str, Any]] = wrapper.optimizer.param_groups
        self.state = wrapper.optimizer.state  # of AdamW
        groups = {id(main): group for group in self.param_groups if group.get("muon") for main in group["params"]}
        self.matrices: dict[Any, _Matrix] = {  # by parameter, with the attributes that the engine gave it
            parameter: _Matrix(parameter.spec, main, start, torch.zeros_like(main.data), groups[id(main)])
            for parameter, main, start in held_parameters(wrapper)
            if id(main) in groups
        }
        self.adamw.param_groups = [group for group in self.param_groups if not group.get("muon")]
        distributed = isinstance(wrapper, DistributedOptimizer)
        self.data_group = wrapper.data_parallel_group if distributed else None
        self.pieces = self._pieces_of_cut()

    def _pieces_of_cut(self) -> dict[Any, list[tuple[int, int, int]]]:
        """Return the pieces of each matrix that several data-parallel processes hold: (rank, start, length)."""
        if self.data_group is None or self.data_group.size() == 1:
            return {}
        mine = {parameter.full_name: (one.start, one.main.numel()) for parameter, one in self.matrices.items()}
        everyone: list[Any] = [None] * self.data_group.size()
        dist.all_gather_object(everyone, mine, self.data_group)
        pieces = {}
        for parameter in self.matrices:
            name = parameter.full_name
            found = [(rank, *held[name]) for rank, held in enumerate(everyone) if name in held]
            if len(found) > 1:
                pieces[parameter] = found
        return pieces

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters from the gradients of what the optimizer holds."""
        cut = self._exchange()
        for parameter, one in self.matrices.items():
            update = cut[parameter] if parameter in cut else self._looked_ahead(one)
            update = self._orthogonal(one.spec, update.view(one.spec.local_shape(self.shards)))
            update = update.reshape(-1)[one.start : one.start + one.main.numel()]
            lr = one.group["lr"]
            one.main.mul_(1 - lr * one.group["weight_decay"]).add_(update.view_as(one.main), alpha=-lr)
        if self.adamw.param_groups:
            self.adamw.step()

    def _looked_ahead(self, one: _Matrix) -> Tensor:
        """Take the gradient into the momentum; return the update before it is orthogonalised, flat."""
        gradient, beta = one.main.grad, self.muon.momentum
        assert gradient is not None
        one.momentum.lerp_(gradient, 1 - beta)
        update = gradient.lerp(one.momentum, beta) if self.muon.nesterov else one.momentum
        return update.to(self.dtype).view(-1)

    def _exchange(self) -> dict[Any, Tensor]:
        """Return the updates of this process's matrices that data-parallel shards cut, put together."""
        together, messages = {}, []
        for parameter, pieces in self.pieces.items():
            one = self.matrices[parameter]
            mine = self._looked_ahead(one)
            whole = mine.new_empty(math.prod(one.spec.local_shape(self.shards)))
            whole[one.start : one.start + len(mine)] = mine
            for rank, start, length in pieces:
                peer = dist.get_global_rank(self.data_group, rank)  # type: ignore[arg-type]
                if peer != dist.get_rank():
                    messages.append(dist.P2POp(dist.isend, mine, peer, self.data_group))
                    messages.append(dist.P2POp(dist.irecv, whole[start : start + length], peer, self.data_group))
            together[parameter] = whole
        for work in dist.batch_isend_irecv(messages) if messages else ():
            work.wait()
        return together

    def _orthogonal(self, spec: TensorSpec, local: Tensor) -> Tensor:
        """Return this process's piece of the orthogonal update, each packed part as a matrix of its own."""
        group = self.tensor_groups[spec.experts]
        shard = Shard(group.rank(), group.size()) if spec.parts else Shard()
        everyone = [local]
        if shard.size > 1:
            local = local.contiguous()
            everyone = [torch.empty_like(local) for _ in range(shard.size)]
            dist.all_gather(everyone, local, group)
        update, start = torch.empty_like(local), 0
        for size in spec.local_sizes(self.shards) or [local.size(spec.axis)]:
            whole = torch.cat([piece.narrow(spec.axis, start, size) for piece in everyone], spec.axis)
            whole = orthogonalize(whole, self.muon.ns_steps, self.dtype) * self.muon.factor(*whole.shape[-2:])
            update.narrow(spec.axis, start, size).copy_(whole.narrow(spec.axis, shard.rank * size, size))
            start += size
        return update

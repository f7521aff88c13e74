"""Training in float64, in which what a layout changes by mistake stands out from rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hybridtron.distributed import cpu_compat
from hybridtron.distributed.config import PrecisionConfig


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Let models of format fp32 have parameters, activations, gradients and losses in float64 inside the block.

    Kernels in C, which take float32 alone, are not used then.
    """
    with cpu_compat.cuda_calls_on_cpu():  # before megatron-core is imported
        from hybridtron.distributed import engine
        from hybridtron.distributed.data_parallel import replicas
        from hybridtron.distributed.optimizer import gradient_norm

    narrow, ddp, type_names = Tensor.float, replicas.DistributedDataParallelConfig, cpu_compat._CudaToCpu

    class TypeNames(type_names):  # type: ignore[misc, valid-type]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_function__(func, types, args, kwargs)
            # megatron-core's distributed optimizer knows no other name of a parameter that it updates in place.
            return result.replace("Double", "Float") if isinstance(result, str) else result

    def squared_norm(grads: Sequence[Tensor], group: dist.ProcessGroup, device: torch.device) -> Tensor:
        square = torch.zeros(1, dtype=torch.float64)
        for grad in grads:
            square += grad.square().sum()
        dist.all_reduce(square, group=group)
        return square

    clip_groups = engine.clip_groups

    def clip(*arguments: Any) -> None:
        torch.set_default_dtype(torch.float64)  # of sums of squares
        clip_groups(*arguments)
        torch.set_default_dtype(torch.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "clip_groups", clip)
        patch.setattr(gradient_norm, "_squared_norm", squared_norm)
        patch.setattr(PrecisionConfig, "dtype", property(lambda self: torch.float64))
        patch.setattr(Tensor, "float", lambda self: self if self.dtype == torch.float64 else narrow(self))
        patch.setattr(cpu_compat, "_CudaToCpu", TypeNames)
        patch.setattr(
            replicas, "DistributedDataParallelConfig", lambda **keys: ddp(**{**keys, "grad_reduce_in_fp32": False})
        )
        yield

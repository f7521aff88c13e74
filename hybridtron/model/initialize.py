"""Initial values that depend on the seed and the parameter's name alone: the same in every parallel layout."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import WHOLE, Init, Shards, TensorSpec

BLOCK_ELEMENTS = 1 << 15  # drawn at once: they stay in the cache, and torch starts no threads for so few
VECTOR = 16  # torch draws normal numbers in groups of so many
SMALL_MODEL = 1 << 24  # parameters up to which one thread draws


def initial_value(config: ModelConfig, name: str, spec: TensorSpec, seed: int, shards: Shards = WHOLE) -> Tensor:
    """Return one process's shard of a parameter's initial value in float32, by default the whole.

    The values are those of one draw of the whole tensor. It is drawn in blocks of rows; of those that are not held, the
    random numbers are passed over.
    """
    generator = _generator(seed, name)
    if not isinstance(spec.init, Init):
        return spec.shard(spec.init(spec.shape, generator), shards)
    local = torch.empty(spec.local_shape(shards))
    for start, stop in _row_blocks(spec.shape):
        shape = (stop - start, *spec.shape[1:])
        held = spec.held_rows(start, stop, shards)
        values = _draw(spec.init, shape, generator, config) if held else None
        for rows, target in held:
            assert values is not None
            local[target] = values[rows]
        if not held:
            torch.empty(shape, dtype=torch.int32).random_(generator=generator)  # as many 32-bit numbers
    return local


def _row_blocks(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Cut the first axis into runs of about BLOCK_ELEMENTS, whose draws one after another equal a draw of the whole.

    All but the last have a multiple of VECTOR elements. The last has at least as many as the others, since torch draws
    fewer than VECTOR in another way.
    """
    per_row = math.prod(shape[1:])
    unit = VECTOR // math.gcd(VECTOR, per_row)
    rows = max(BLOCK_ELEMENTS // per_row // unit, 1) * unit
    starts = list(range(0, max(shape[0] - rows + 1, 1), rows))
    return list(zip(starts, [*starts[1:], shape[0]], strict=True))


def _draw(init: Init, shape: tuple[int, ...], generator: torch.Generator, config: ModelConfig) -> Tensor:
    """Draw by the kind of `init`; projections into the residual stream shrink with its number of additions."""
    match init.kind:
        case "input" | "embedding":
            return torch.randn(shape, generator=generator).mul_(config.init_std)
        case "output":
            return torch.randn(shape, generator=generator).mul_(config.init_std / math.sqrt(len(config.layer_names)))
        case "normal":
            return torch.randn(shape, generator=generator).mul_(init.high).add_(init.low)
        case "ones":
            return torch.ones(shape)
        case "zeros":
            return torch.zeros(shape)
    uniform = torch.rand(shape, generator=generator).mul_(init.high - init.low).add_(init.low)
    return uniform.log_() if init.kind == "log_uniform" else uniform


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int, shards: Shards = WHOLE) -> None:
    """Fill the parameters of the model, or of a stage of it, in place; `shards` are those that the process holds.

    A large model is drawn by as many threads as torch uses, at most two tensors a thread in advance.
    """
    specs = model_tensors(config)
    parameters = list(model.named_parameters())

    def draw(name: str) -> Tensor:
        return initial_value(config, name, specs[name], seed, shards)

    threads = torch.get_num_threads()
    if threads == 1 or sum(parameter.numel() for _, parameter in parameters) <= SMALL_MODEL:
        for name, parameter in parameters:
            parameter.copy_(draw(name))
        return
    pending: deque[tuple[Tensor, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for name, parameter in parameters:
            pending.append((parameter, pool.submit(draw, name)))
            if len(pending) > 2 * threads:
                _fill(*pending.popleft())
        for each in pending:
            _fill(*each)


def _fill(parameter: Tensor, value: Future[Tensor]) -> None:
    """Wait for a value and copy it into a parameter."""
    parameter.copy_(value.result())


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

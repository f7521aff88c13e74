"""The places of training at which a PartClock changes parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils._pytree import tree_leaves

from hybridtron.training.phases import EVALUATION as EVALUATION_PHASE
from hybridtron.training.phases import SAVE as SAVE_PHASE
from hybridtron.training.profiling.clock import EVALUATION, OTHER, PartClock

if TYPE_CHECKING:
    from hybridtron.training.loop import Trainer

DATA, OPTIMIZER, SAVE = "data", "optimizer", "save"
GRADIENT_REDUCTION, PIPELINE = "gradient reduction", "pipeline messages"
FORWARD, BACKWARD = "forward", "backward"
LOSS = "output and loss"  # what a stage computes outside its layers and the embedding
PHASES = {EVALUATION_PHASE: EVALUATION, SAVE_PHASE: SAVE}


@contextmanager
def measured(trainer: Trainer, clock: PartClock) -> Iterator[None]:
    """Let the clock follow the training of the block; nothing of it is left afterwards.

    Parts are the batches, forward and backward passes by block, messages between pipeline stages, the reduction of
    gradients, the optimizer (with gradient norm, clipping and the mean of the loss), evaluation and saving.
    """
    engine, phases = trainer.engine, trainer.phases
    megatron = engine.replicas[0].config
    enter_phase = phases.enter

    def enter(phase: str) -> None:
        clock.switch(PHASES.get(phase, OTHER))
        enter_phase(phase)

    with ExitStack() as stack:
        for owner, name, value in (
            (trainer, "load_batches", _inside(clock, DATA, trainer.load_batches)),
            (engine, "train_step", _inside(clock, OPTIMIZER, engine.train_step)),
            (phases, "enter", enter),
            (megatron, "timers", partial(_Timer, clock)),
        ):
            stack.enter_context(_replaced(owner, name, value))
        for chunk in trainer.chunks:
            if hasattr(chunk, "embedding"):
                _follow(stack, clock, chunk.embedding, "embedding", "embedding")
            for number, layer in chunk.layers.items():
                block = trainer.config.model.layer_names[int(number)]
                _follow(stack, clock, layer, block, f"layer {number}, {block}")
            for depth, module in enumerate(chunk.mtp if chunk.mtp_depth else ()):
                _follow(stack, clock, module, "mtp", f"mtp {depth}")
        yield


class _Timer:
    """One of megatron-core's timers, which its schedules start and stop."""

    def __init__(self, clock: PartClock, name: str, log_level: int = 0) -> None:
        self.clock, self.part = clock, _part_of(name)

    def start(self, barrier: bool = False) -> None:
        """Begin the part."""
        self.clock.begin(self.part)

    def stop(self, barrier: bool = False) -> None:
        """End the part."""
        self.clock.end()


def _part_of(name: str) -> str:
    """Return the part that a timer of megatron-core measures."""
    if name in ("forward-compute", "backward-compute"):
        return f"{name.removesuffix('-compute')}: {LOSS}"
    if "grads" in name:
        return GRADIENT_REDUCTION
    return PIPELINE if "send" in name or "recv" in name else OTHER


def _inside(clock: PartClock, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, with its time counted as the part's."""

    def call(*arguments: Any) -> Any:
        clock.begin(part)
        try:
            return function(*arguments)
        finally:
            clock.end()

    return call


def _follow(stack: ExitStack, clock: PartClock, module: nn.Module, part: str, label: str) -> None:
    """Count the passes of a module as the part's, until the stack is closed.

    The backward pass of a layer begins when the gradient of its output is known, and ends where that of the layer
    before it begins.
    """

    def begin(module: nn.Module, inputs: Any) -> None:
        clock.begin(f"{FORWARD}: {part}", f"{FORWARD}: {label}")

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        clock.end()
        tensor = tree_leaves(output)[0]
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: clock.switch(f"{BACKWARD}: {part}", f"{BACKWARD}: {label}"))

    stack.callback(module.register_forward_pre_hook(begin).remove)
    stack.callback(module.register_forward_hook(end).remove)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another value of an attribute inside the block."""
    own = vars(owner)
    before = own.get(name, own)  # the object's own attributes: it has none of this name
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is own:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

"""How the agent of a fault campaign takes part in training: as a callback, and around the writing of tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hybridtron.distributed.checkpoint import writing
from hybridtron.training import run
from hybridtron.training.callbacks.base import Callback, Row, TrainContext
from hybridtron.training.callbacks.plot import LossPlot

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from hybridtron.faults.agent import Agent


class FaultCallback(Callback):
    """Passes each step to the agent, and spoils gradients for it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.hook: RemovableHandle | None = None

    def before_step(self, context: TrainContext) -> None:
        step = context.state.step
        if self.agent.non_finite_now(step):
            parameter: Any = next(each for chunk in context.chunks for each in chunk.parameters() if each.requires_grad)

            def spoil(gradient: Tensor) -> None:
                parameter.main_grad.fill_(math.nan)  # the sum: a product may have added to it, and left no gradient

            self.hook = parameter.register_hook(spoil)
        self.agent.before_step(step)

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        if self.hook:
            self.hook.remove()
            self.hook = None


def wrap_training(agent: Agent) -> None:
    """Let every training of this process call the agent, and draw no plot, which takes longer than all else."""
    train, write_all = run.train, writing.write_all

    def train_with_faults(
        config: Any, environment: Any, resume: bool = False, callbacks: Any = (), **options: Any
    ) -> run.Run:
        return train(config, environment, resume, [*callbacks, FaultCallback(agent)], **options)

    def write(stream: Any, content: Any) -> None:
        agent.on_write(stream, content)
        write_all(stream, content)

    run.train = train_with_faults  # type: ignore[assignment]
    for method in ("on_save", "on_train_end"):
        setattr(LossPlot, method, getattr(Callback, method))
    writing.write_all = write

"""Parameters gathered after an update of the distributed optimizer while the next forward pass goes on.

Until its gather has ended, a parameter has new values where this process updated it and old ones elsewhere. Each layer
waits, before it runs, for all that it holds; so does the model for what comes before its layers, and behind the last
layer for what follows. megatron-core has each module wait for its own parameters when it is called, but layers here
read weights of modules that they do not call. Whoever takes a run of layers from `Gathered` waits for everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, overload

from megatron.core.distributed import DistributedDataParallel
from torch import nn

from hybridtron.distributed.data_parallel.replicas import in_order_of_use

Chunk = TypeVar("Chunk", bound=nn.Module)


class ParameterGathers:
    """The gathers of replicas that overlap them. To wait is local: any process may do so at any time."""

    def __init__(self, replicas: Sequence[DistributedDataParallel]) -> None:
        """Have all layers of the replicas wait in their forward passes."""
        self.groups: list[Any] = []  # megatron-core's buckets, in the order of their use
        self.pending: set[Any] = set()
        for replica in replicas:
            replica.disable_forward_pre_hook(param_sync=False)  # megatron-core's own
            groups = [*replica.bucket_groups, *replica.expert_parallel_bucket_groups]
            self.groups += in_order_of_use(replica, groups)
            self._follow(replica)

    def begin(self) -> None:
        """Begin to gather all parameters, after an update in all processes."""
        for group in self.groups:
            group.start_param_sync()
            self.pending.add(group)

    def wait(self) -> None:
        """Wait for all gathers that have begun."""
        for group in self.groups:
            self._wait_for(group)

    def _wait_for(self, group: Any) -> None:
        if group in self.pending:
            group.start_param_sync(force_sync=True)  # of one that has begun, this waits alone
            self.pending.remove(group)

    def _follow(self, replica: DistributedDataParallel) -> None:
        """Make the modules of a replica wait for what they read."""
        model: Any = replica.module
        children = list(model.children())
        place = children.index(model.layers)
        layers = list(model.layers.values())
        before = [*model.parameters(recurse=False), *_parameters(children[:place])]
        after = _parameters(children[place + 1 :])
        model.register_forward_pre_hook(self._waiting(replica, before if layers else [*before, *after]))
        for layer in layers:
            layer.register_forward_pre_hook(self._waiting(replica, layer.parameters()))
        if layers:
            layers[-1].register_forward_hook(self._waiting(replica, after))

    def _waiting(self, replica: DistributedDataParallel, parameters: Iterable[nn.Parameter]) -> Callable[..., None]:
        """Return a hook that waits for the gathers of some parameters, of which those without gradients have none."""
        buckets = replica.param_to_bucket_group
        groups = list(dict.fromkeys(buckets[each] for each in parameters if each in buckets))

        def wait(*_: Any) -> None:
            for group in groups:
                self._wait_for(group)

        return wait


class Gathered(Sequence[Chunk]):
    """Runs of layers, whose parameters have been gathered whenever one is taken."""

    def __init__(self, chunks: Sequence[Chunk], wait: Callable[[], None]) -> None:
        self.chunks, self.wait = chunks, wait

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        self.wait()
        return self.chunks[index]

    def __len__(self) -> int:
        return len(self.chunks)


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]

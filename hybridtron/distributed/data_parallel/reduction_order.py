"""Reductions of gradients that begin during the backward pass, in one order in all processes.

megatron-core begins the reduction of a bucket as soon as it has its gradients. Processes match their messages by order
alone, so two buckets that are ready in another order in another process would be added to each other. Here a bucket
waits for those whose gradients come before in the backward pass, and what was not begun in it begins at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from megatron.core.distributed import DistributedDataParallel, finalize_model_grads

from hybridtron.distributed.data_parallel.replicas import in_order_of_use


class ReductionOrder:
    """The order of the reductions of a replica's buckets `groups`, each of which megatron-core begins by its
    `start_grad_sync`."""

    def __init__(self, groups: Sequence[Any]) -> None:
        """Take the place of `start_grad_sync` in all of them."""
        self.groups = groups
        self.begin: list[Callable[..., None]] = [group.start_grad_sync for group in groups]
        self.begun, self.ready = 0, set[int]()
        for index, group in enumerate(groups):
            group.start_grad_sync = partial(self.add, index)

    def add(self, index: int, force_all_reduce: bool = False) -> None:
        """Begin the reduction of a bucket that is ready, or leave it to the one before it."""
        self.ready.add(index)
        while self.begun in self.ready:
            self.begin[self.begun](force_all_reduce)
            self.begun += 1

    def begin_rest(self) -> None:
        """Begin the reductions of all that were not begun in the backward pass."""
        for index in range(len(self.begin)):
            self.add(index)

    def forget(self) -> None:
        """Complete what a step that failed has begun, and forget it and which gradients there were."""
        for group in self.groups:
            if group.grad_reduce_handle is not None:
                group.grad_reduce_handle.wait()
                group.grad_reduce_handle = None
            group.per_param_grad_ready_counts.clear()
        self.end()

    def end(self) -> None:
        """Forget what was begun, after the reductions of a step.

        megatron-core learns from a bucket's first gradients when it is ready, and fails on a part of them: it learns
        from the first step that has all.
        """
        self.begun = 0
        self.ready.clear()
        for group in self.groups:
            if group.is_first_batch and len(group.per_param_grad_ready_counts) < len(group.params):
                group.per_param_grad_ready_counts.clear()


def reduction_orders(replicas: Sequence[DistributedDataParallel]) -> list[ReductionOrder]:
    """Order the reductions of replicas that begin them in the backward pass; one order for each set of processes."""
    return [
        ReductionOrder(in_order_of_use(replica, groups)[::-1])
        for replica in replicas
        for groups in (replica.bucket_groups, replica.expert_parallel_bucket_groups)
    ]


def finalize_ordered(orders: Sequence[ReductionOrder], *arguments: Any, **options: Any) -> None:
    """Complete a step's gradients as `finalize_model_grads`, which is given all other arguments."""
    for order in orders:
        order.begin_rest()
    finalize_model_grads(*arguments, **options)
    for order in orders:
        order.end()

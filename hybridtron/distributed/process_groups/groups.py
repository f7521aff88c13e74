"""Process groups of a layout, and this process among them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hybridtron.backends.dispatcher import ExpertGroups
from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
from hybridtron.distributed.process_groups.device_queues import order_messages
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.launch import signal_at_death_of_parent
from hybridtron.distributed.process_groups.rendezvous import PUBLISH, published_store
from hybridtron.errors import DamagedCheckpoint, UserError, cause_of
from hybridtron.memory import keep_freed_memory
from hybridtron.tensors import Shard, Shards

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class ParallelContext:
    """This process among the others. Groups are torch process groups.

    `data_rank` and `data_size` count copies of the model; the processes of one copy that share a sequence
    (`context`) read the same samples.
    """

    rank: int
    world_size: int
    device: torch.device
    shards: Shards  # the part of the parameters that this process holds
    tensor_group: dist.ProcessGroup
    context: Shard
    context_group: dist.ProcessGroup
    sequence_group: dist.ProcessGroup  # those that hold the runs of a sequence between mixers, in their order
    expert_groups: ExpertGroups
    pipeline: Shard
    pipeline_group: dist.ProcessGroup
    stage_group: dist.ProcessGroup  # all processes of this one's pipeline stage
    data_rank: int
    data_size: int
    replica: Shard  # among the processes that hold the same shards: data and context together
    expert_replica: Shard  # among those that hold the same experts
    control_group: dist.ProcessGroup | None = None  # of all, for CPU tensors; None: the default group
    # What completes the messages that are under way, before the groups are left.
    before_leaving: list[Callable[[], None]] = field(default_factory=list, compare=False)

    @property
    def is_main(self) -> bool:
        """Return True for the process that writes files and output."""
        return self.rank == 0


@contextlib.contextmanager
def process_groups(parallel: ParallelConfig, environment: Environment) -> Iterator[ParallelContext]:
    """Initialise torch.distributed and megatron-core's groups for the layout, and take them down at the end.

    Raises UserError inside other process groups: a process has one set of them at a time.
    """
    require_no_process_groups()
    order_messages(parallel)
    with cuda_calls_on_cpu():
        _die_with_launcher()
        device = _choose_device(environment)
        backend = "nccl" if device.type == "cuda" else "gloo"
        logger.debug("rank %d of %d joins by %s, on %s", environment.rank, environment.world_size, backend, device)
        _initialize_torch_distributed(environment, backend)
        before_leaving: list[Callable[[], None]] = []
        try:
            make_groups(parallel)
            context = parallel_context_of(parallel, environment.rank, environment.world_size, device)
            context = replace(context, before_leaving=before_leaving)
            if backend == "nccl" and environment.world_size > 1:  # so that agreeing to stop waits for no kernel
                context = replace(context, control_group=dist.new_group(backend="gloo"))
            yield context
            for complete in before_leaving:
                complete()
        finally:
            before_leaving.clear()  # which refers to engines
            destroy_groups()
            gc.collect()  # an engine refers to itself; gloo's threads run, and spin, until it and its groups are gone


def gather(mine: T) -> list[T]:
    """Return the value that each process gives, by rank; a value is pickled."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, mine)
    return values


def call_everywhere(action: Callable[[], T]) -> T:
    """Call an action, without communication, in every process; raise the same error in all where it fails in one.

    It is that of the first process that failed, as DamagedCheckpoint, UserError, OSError or RuntimeError; one that is
    no DamagedCheckpoint comes before those that are, since it may be the cause of them.
    """
    own: Exception | None = None
    try:
        result = action()
    except Exception as error:
        own = error
    failures = [each for each in gather(_kind_of(own)) if each]
    if not failures:
        return result
    kind, arguments = min(failures, key=lambda each: each[0] is DamagedCheckpoint)
    raise kind(*arguments) from own


def _kind_of(error: Exception | None) -> tuple[type[Exception], tuple[Any, ...]] | None:
    """Return an exception as a class that every process knows, and its arguments."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return OSError, (error.errno, error.strerror, error.filename)
    kinds = (DamagedCheckpoint, UserError, OSError, RuntimeError)
    return next((kind for kind in kinds if isinstance(error, kind)), RuntimeError), (cause_of(error),)


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether an exception says that another process of the run is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def require_no_process_groups() -> None:
    """Raise UserError where torch.distributed is initialised in this process."""
    if dist.is_initialized():
        raise UserError(
            "torch.distributed: is already initialised in this process; expected one set of process groups at a time: "
            "leave the others first"
        )


def _choose_device(environment: Environment) -> torch.device:
    """Return this process's GPU and make it current, or the CPU, with memory that is kept for reuse."""
    if not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    torch.cuda.set_device(environment.local_rank % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def _initialize_torch_distributed(environment: Environment, backend: str) -> None:
    """Meet the job's other processes; a process without a rendezvous is alone."""
    timeout = timedelta(seconds=environment.collective_seconds)
    if environment.init_method is None or environment.init_method.startswith(PUBLISH):
        store = dist.HashStore() if environment.init_method is None else published_store(environment, timeout)
        dist.init_process_group(
            backend, store=store, rank=environment.rank, world_size=environment.world_size, timeout=timeout
        )
    else:
        dist.init_process_group(
            backend,
            init_method=environment.init_method,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
        )


def make_groups(parallel: ParallelConfig) -> None:
    """Make megatron-core's groups of the layout, over the processes of the default group."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        create_gloo_process_groups=False,
    )


def destroy_groups() -> None:
    """Take down megatron-core's groups and the default group."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def parallel_context_of(parallel: ParallelConfig, rank: int, world_size: int, device: torch.device) -> ParallelContext:
    """Describe this process among the groups that `make_groups` made."""
    from megatron.core import parallel_state as state

    tensor = state.get_tensor_model_parallel_group()
    context = state.get_context_parallel_group()
    pipeline = state.get_pipeline_model_parallel_group()
    expert, expert_tensor = state.get_expert_model_parallel_group(), state.get_expert_tensor_parallel_group()
    return ParallelContext(
        rank=rank,
        world_size=world_size,
        device=device,
        shards=Shards(
            tensor=_shard_of(tensor),
            expert=_shard_of(expert),
            expert_tensor=_shard_of(expert_tensor),
        ),
        tensor_group=tensor,
        context=_shard_of(context),
        context_group=context,
        sequence_group=state.get_tensor_and_context_parallel_group() if parallel.sequence else context,
        expert_groups=ExpertGroups(expert, expert_tensor, state.get_expert_tensor_and_model_parallel_group()),
        pipeline=_shard_of(pipeline),
        pipeline_group=pipeline,
        stage_group=state.get_amax_reduction_group(with_context_parallel=True),
        data_rank=state.get_data_parallel_rank(),
        data_size=state.get_data_parallel_world_size(),
        replica=_shard_of(state.get_data_parallel_group(with_context_parallel=True)),
        expert_replica=_shard_of(state.get_expert_data_parallel_group()),
    )


def _shard_of(group: dist.ProcessGroup) -> Shard:
    """Return this process's rank in a group and the group's size, as a shard."""
    return Shard(group.rank(), group.size())


def _die_with_launcher() -> None:
    """End, on Linux, a rank that `--nproc` started when its launcher is killed, so that no rank is left behind."""
    if launcher := os.environ.get("HYBRIDTRON_PARENT"):
        signal_at_death_of_parent(signal.SIGKILL, int(launcher))

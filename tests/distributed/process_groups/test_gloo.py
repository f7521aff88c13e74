"""Process groups of gloo: one thread each, with which messages under way together leave memory whole."""

import sys
from datetime import timedelta

import pytest
import torch
from torch.distributed import distributed_c10d

from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from tests.conftest import environment
from tests.warm import run

ALONE = Environment(0, 1, 0, None, "single")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="messages are NCCL's where CUDA is usable")


def test_every_group_has_one_thread():
    with process_groups(ParallelConfig(), ALONE):
        groups = list(distributed_c10d._world.pg_map)
        assert len(groups) > 1
        assert {group._get_backend(torch.device("cpu")).options._threads for group in groups} == {1}


def test_torch_makes_its_own_afterwards():
    with process_groups(ParallelConfig(), ALONE):
        pass
    own = distributed_c10d.ProcessGroupGloo(torch.distributed.HashStore(), 0, 1, timeout=timedelta(seconds=9))
    assert own.options._threads > 1


def test_torch_knows_them_as_groups_of_gloo():
    """It changes the timeout of no others."""
    with process_groups(ParallelConfig(), ALONE):
        distributed_c10d._set_pg_timeout(timedelta(seconds=77))
        group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
        assert group.options._timeout == timedelta(seconds=77)


def test_they_meet_on_the_interfaces_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none-such")
    with pytest.raises(RuntimeError, match="none-such"), process_groups(ParallelConfig(), ALONE):
        pass
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with process_groups(ParallelConfig(), ALONE):
        torch.distributed.barrier()


GATHERS = """
import torch
from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups

with process_groups(ParallelConfig(), Environment(0, 1, 0, None, "single")):
    group = torch.distributed.new_group()
    shards = [torch.full([64], float(number)) for number in range(32)]
    for _ in range(1000):
        whole = [torch.zeros(64) for _ in shards]
        under_way = [group.allgather_into_tensor_coalesced([one], [shard]) for one, shard in zip(whole, shards)]
        for each in under_way:
            each.wait()
        assert all(map(torch.equal, whole, shards))
"""


def test_many_coalesced_gathers_under_way_leave_memory_whole(tmp_path):
    """With two threads the process ends by a signal, in many runs."""
    done = run([sys.executable, "-c", GATHERS], env=environment(), cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()

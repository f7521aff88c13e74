"""Which process of how many this is."""

import pytest

from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.errors import UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
}


def test_nothing_set_is_one_process():
    found = read_environment({})
    assert (found.rank, found.world_size, found.init_method) == (0, 1, None)


def test_torchrun():
    found = read_environment(TORCHRUN)
    assert (found.rank, found.world_size, found.local_rank, found.init_method) == (3, 8, 1, "env://")


def test_slurm_step():
    found = read_environment(SLURM)
    assert (found.rank, found.world_size, found.local_rank) == (3, 8, 1)
    assert found.init_method.startswith("tcp://127.0.0.1:")


def test_slurm_steps_of_one_job_meet_at_different_ports():
    assert read_environment(SLURM).init_method != read_environment({**SLURM, "SLURM_STEP_ID": "1"}).init_method


def test_torchrun_inside_slurm_wins():
    assert read_environment({**SLURM, **TORCHRUN}).launcher == "torchrun"


def test_a_batch_script_before_srun_is_one_process():
    assert read_environment({"SLURM_JOB_ID": "42", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).world_size == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "²"}, "RANK = '²'"),
        ({"RANK": "8"}, "RANK = 8"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT = 'abc'"),
        ({"RANK": "x"}, "RANK = 'x'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
    ],
)
def test_damaged_variables_are_named(change, message):
    with pytest.raises(UserError, match=message):
        read_environment({**TORCHRUN, **change})

"""Nodes and processes from the layout and the launch file."""

from __future__ import annotations

from typing import Any

import pytest

from hybridtron.errors import UserError
from hybridtron.launcher.allocation import allocate
from hybridtron.launcher.config import LaunchConfig, read_launch
from hybridtron.training.config import RunConfig
from tests.conftest import ROOT
from tests.training.runs import resolved_tiny


def tiny(batch: int = 8, **parallel: Any) -> RunConfig:
    config = resolved_tiny()
    train = config.train.model_copy(update={"global_batch_size": batch, "micro_batch_size": 1})
    return config.model_copy(update={"train": train, "parallel": config.parallel.model_copy(update=parallel)})


def slurm(**keys: Any) -> LaunchConfig:
    return LaunchConfig(cluster="slurm", **keys)


@pytest.mark.parametrize(
    ("parallel", "keys", "nodes", "per_node"),
    [
        ({"tensor": 2, "data": 4}, {"processes_per_node": 4}, 2, 4),
        ({"tensor": 2, "pipeline": 2, "data": 2}, {"processes_per_node": 8}, 1, 8),
        ({"tensor": 2}, {"processes_per_node": 2, "nodes": 4}, 4, 2),
        ({}, {"processes_per_node": 1}, 1, 1),
    ],
)
def test_nodes_follow_from_the_layout(parallel, keys, nodes, per_node):
    allocation = allocate(tiny(**parallel), slurm(**keys))
    assert (allocation.nodes, allocation.processes_per_node) == (nodes, per_node)


@pytest.mark.parametrize(
    ("config", "launch", "message"),
    [
        (tiny(tensor=2, data=4), slurm(processes_per_node=3), "processes_per_node = 3: expected a divisor of the 8"),
        (tiny(tensor=2, data=2), LaunchConfig(processes_per_node=2), "processes_per_node = 2: expected 4"),
        (tiny(tensor=2), slurm(processes_per_node=1, nodes=3), "nodes 3 x processes_per_node 1 = 3: expected a multip"),
        (tiny(batch=8), slurm(processes_per_node=1, nodes=3), "train.global_batch_size = 8: expected a multiple of"),
        (tiny(batch=8), slurm(nodes=4, min_nodes=3), "min_nodes = 3: the job could not go on with so few"),
    ],
)
def test_an_allocation_that_does_not_fit_is_refused(config, launch, message):
    with pytest.raises(UserError) as refused:
        allocate(config, launch)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_job_goes_on_with_the_numbers_of_nodes_that_the_batch_divides_over():
    assert allocate(tiny(batch=8), slurm(nodes=4, min_nodes=1)).node_counts == (1, 2, 4)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "launch").glob("*.yaml")), ids=lambda file: file.stem)
def test_launch_files_are_valid(file):
    assert read_launch(file).cluster == ("local" if file.stem == "local" else "slurm")


@pytest.mark.parametrize(
    ("key", "value"),
    [("partition", "h100"), ("time_minutes", 60), ("sbatch", {"reservation": "a"}), ("setup", ["module load cuda"])],
)
def test_keys_of_slurm_are_refused_on_this_machine(key, value):
    with pytest.raises(UserError, match=rf"^{key} = .*: expected it only with cluster slurm"):
        read_launch({"cluster": "local", key: value})
    assert read_launch({"cluster": "slurm", key: value})


@pytest.mark.parametrize("value", ["a b", "a\nb", "$(x)", "a;b", "`x`", "'"])
def test_words_of_the_batch_script_cannot_hold_shell(value):
    with pytest.raises(UserError, match="partition"):
        read_launch({"cluster": "slurm", "partition": value})

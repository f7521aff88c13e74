"""Compiled layers whose linears send messages, in real processes."""

import json
import sys

from tests.warm import launch


def test_tensor_parallel_processes_compute_what_they_do_without(tmp_path):
    """With sequence parallelism; nothing is compiled after the first step."""
    assert launch([sys.executable, "-m", "tests.distributed.compiled", str(tmp_path)], 2) == 0
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["losses"] < 1e-5
        assert seen["gradients"] < 1e-5
        assert seen["compiled"] == seen["compiled"][:1] * len(seen["compiled"])
        assert seen["compiled"][0] > 0

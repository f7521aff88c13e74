"""A checkpoint of a CPU is resumed on CUDA and the other way round, as if the run had stayed on one device."""

import pytest
import torch

from tests.gpu.conftest import losses, train_on, write_config

pytestmark = pytest.mark.gpu

BEFORE, STEPS = 4, 8
SAME_LOSS = 1e-3
LAYOUTS = {
    "float32": [],
    "bfloat16, distributed optimizer": ["precision.format=bf16", "parallel.distributed_optimizer=true"],
    "bfloat16, overlap": [
        "precision.format=bf16",
        "parallel.distributed_optimizer=true",
        "parallel.overlap_grad_reduce=true",
        "parallel.overlap_param_gather=true",
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")], ids="-".join)
def test_a_run_goes_on_on_another_device(tmp_path, corpus, devices, layout):
    first, second = devices
    (tmp_path / "whole").mkdir()
    whole = losses(train_on("cuda", write_config(tmp_path / "whole", corpus), f"train.steps={STEPS}", *LAYOUTS[layout]))
    config = write_config(tmp_path, corpus)
    train_on(first, config, f"train.steps={BEFORE}", *LAYOUTS[layout])
    resumed = losses(train_on(second, config, f"train.steps={STEPS}", *LAYOUTS[layout], resume=True))
    bound = SAME_LOSS if layout == "float32" else 10 * SAME_LOSS
    torch.testing.assert_close(resumed, whole, rtol=bound, atol=0)
    if devices == ("cuda", "cuda"):
        assert torch.equal(resumed, whole)

"""Training in FP8 on CUDA: every recipe falls with bfloat16, and is restored with its scales."""

import pytest
import torch

from tests.gpu.conftest import losses, train_on, write_config

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_cuda")]

STEPS = 30
MODEL = {
    "hidden_size": 256,
    "backend": "transformer_engine",
    "blocks": {
        "mamba": {"type": "mamba2", "head_dim": 64, "state_dim": 64},
        "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
        "mlp": {"type": "swiglu", "ffn_hidden_size": 512},
    },
    "pattern": "mamba mlp attn mlp",
}
RECIPES = ["tensorwise", "delayed", "blockwise", "mxfp8"]
NEAR = 0.05  # of the mean of the last losses


def trained(folder, corpus, *overrides, resume=False, steps=STEPS):
    """Train on sequences of 128, whose tokens all recipes' blocks divide."""
    config = write_config(folder, corpus, model=MODEL)
    more = [f"train.steps={steps}", "data.seq_len=128", "optimizer.lr=1e-3", "train.eval_every=2", *overrides]
    return losses(train_on("cuda", config, *more, resume=resume))


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory, corpus, transformer_engine):
    return trained(tmp_path_factory.mktemp("bf16"), corpus, "precision.format=bf16")


def fp8(recipe):
    """Leave out the one linear whose width, which has one channel per head in it, blocks do not divide."""
    if recipe == "mxfp8" and torch.cuda.get_device_capability() < (10, 0):
        pytest.skip("MXFP8 needs a GPU of compute capability 10.0 (Blackwell)")
    return ["precision.format=fp8", f"precision.recipe={recipe}", "precision.skip=[mamba.in_proj]"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_fall_as_in_bfloat16(tmp_path, corpus, in_bfloat16, recipe):
    found = trained(tmp_path, corpus, *fp8(recipe))
    assert found.isfinite().all()
    assert not torch.equal(found, in_bfloat16)
    torch.testing.assert_close(found[-5:].mean(), in_bfloat16[-5:].mean(), rtol=NEAR, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_has_the_losses_of_one_that_went_through(tmp_path, corpus, in_bfloat16, recipe):
    (tmp_path / "whole").mkdir()
    whole = trained(tmp_path / "whole", corpus, *fp8(recipe), steps=8)
    trained(tmp_path, corpus, *fp8(recipe), steps=4)
    resumed = trained(tmp_path, corpus, *fp8(recipe), steps=8, resume=True)
    torch.testing.assert_close(resumed, whole, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("skip", "quantized"), [("[attn, mlp]", False), ("[attn]", True)])
def test_first_and_last_layers_and_skipped_linears_stay_in_bfloat16(tmp_path, corpus, in_bfloat16, skip, quantized):
    """Of the inner layers, mlp and attn, all or attn alone are left out."""
    left_out = ["precision.first_last_bf16=1", f"precision.skip={skip}"]
    found = trained(tmp_path, corpus, *fp8("tensorwise"), *left_out)
    torch.testing.assert_close(found, in_bfloat16, rtol=NEAR if quantized else 1e-3, atol=0)
    if quantized:
        assert not torch.equal(found, in_bfloat16)

"""Who builds the layers: `model.backend`, by device, number format and what is installed."""

from types import SimpleNamespace

import pytest

from hybridtron.errors import UserError
from hybridtron.training import build


def choose(backend, device, number_format="bf16", emulate=False, overlap=False):
    precision = SimpleNamespace(format=number_format, emulate=emulate)
    model, parallel = SimpleNamespace(backend=backend), SimpleNamespace(tp_comm_overlap=overlap)
    return build.choose_backend(SimpleNamespace(model=model, precision=precision, parallel=parallel), device)


@pytest.fixture
def installed(monkeypatch):
    """Say what is wrong with Transformer Engine; None: nothing."""
    return lambda problem: monkeypatch.setattr(build, "transformer_engine_problem", lambda: problem)


def test_auto_takes_transformer_engine_for_bf16_on_cuda_where_it_is_usable(installed):
    installed(None)
    assert choose("auto", "cuda") == "transformer_engine"
    assert choose("auto", "cuda", "fp32") == "megatron"
    assert choose("auto", "cpu") == "megatron"
    installed("Transformer Engine is not installed")
    assert choose("auto", "cuda") == "megatron"


def test_auto_takes_linears_that_overlap_where_the_config_asks_for_them(installed):
    installed(None)
    assert choose("auto", "cuda", overlap=True) == "megatron"


def test_a_dry_run_has_megatron_cores_modules_for_it(installed):
    installed("Transformer Engine needs a CUDA device")
    assert choose("transformer_engine", "meta") == choose("auto", "meta") == "megatron"


def test_a_named_backend_is_taken_or_refused_in_one_line(installed):
    installed("Transformer Engine needs a CUDA device")
    assert choose("torch", "cuda") == "torch"
    assert choose("megatron", "cpu") == "megatron"
    with pytest.raises(
        UserError, match=r"^model.backend = transformer_engine: Transformer Engine needs a CUDA device;"
    ):
        choose("transformer_engine", "cpu")
    installed(None)
    assert choose("transformer_engine", "cuda", "fp32") == "transformer_engine"


def test_fp8_is_transformer_engines_or_emulated(installed):
    installed(None)
    assert choose("auto", "cuda", "fp8") == "transformer_engine"
    assert choose("auto", "cuda", "fp8", emulate=True) == "megatron"
    with pytest.raises(UserError, match=r"^model.backend = transformer_engine: expected auto, megatron or torch"):
        choose("transformer_engine", "cuda", "fp8", emulate=True)
    installed("Transformer Engine needs a CUDA device")
    assert choose("auto", "meta", "fp8") == "megatron"
    with pytest.raises(
        UserError, match=r"^precision.emulate = false: Transformer Engine needs a CUDA device; expected"
    ):
        choose("auto", "cpu", "fp8")

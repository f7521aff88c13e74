"""Memory that a dry run counts, against real passes on a CPU and against formulas."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.model.activation_offload import ActivationOffload
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.pinned_memory import bytes_of
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.device import choosing_for
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.planner.dry_run import LOSS, run_stage
from hybridtron.planner.live_memory import LiveMemory, Phase
from hybridtron.planner.memory import GIB, Capacity, Fit, StageMemory
from hybridtron.planner.plan import plan
from hybridtron.tensors import WHOLE
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve
from tests.mixers.test_contract import CASES
from tests.model.late_host import offloaded

HIDDEN, VOCAB, SEQ_LEN, BATCH = 32, 320, 96, 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CUDA = {"cpu": "cpu", "gpu": "cuda"}


def config_of(block, number_format="fp32", pattern="x x", vocab_size=VOCAB, **sections):
    model = {"hidden_size": HIDDEN, "vocab_size": vocab_size, "blocks": {"x": block}, "pattern": pattern}
    model["backend"] = "torch"
    config = {"name": "x", "model": model, "optimizer": {"lr": 1e-3}, "precision": {"format": number_format}}
    config |= {"train": {"steps": 1, "global_batch_size": BATCH, "micro_batch_size": BATCH}}
    config |= {"data": {"train": "none", "seq_len": SEQ_LEN, "tokenizer": "byte"}}
    return resolve(build(config | sections, RunConfig))


def saved_in(forward):
    """Return the result and the distinct storages that autograd saves."""
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    return result, saved


def model_on_cpu(config):
    module = LanguageModel(config.model, TorchBackend(DTYPES[config.precision.format], "cpu", config.model.norm_eps))
    initialize(module, config.model, 0, WHOLE)
    return module, torch.zeros(BATCH, SEQ_LEN, dtype=torch.long)


def kept_by_a_real_pass(config):
    module, tokens = model_on_cpu(config)
    _, saved = saved_in(lambda: module(tokens, tokens))
    parameters = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in parameters)


@pytest.mark.parametrize(("device", "number_format"), [("cpu", "fp32"), ("gpu", "bf16")])
@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_keeps_the_bytes_of_a_real_pass(case, device, number_format):
    """For a GPU the real pass takes, on the CPU, the implementations of CUDA, and for PyTorch's fused kernels what
    stands for them on tensors without values."""
    config = config_of(CASES[case], number_format)
    with choosing_for(CUDA[device]), patch("hybridtron.ops.dispatch.have_no_values", return_value=device == "gpu"):
        real = kept_by_a_real_pass(config)
    assert sum(run_stage(config, 1, 0, device).passes.kept.values()) == real


def test_both_devices_differ_where_other_tensors_are_kept():
    config = config_of(CASES["attention"])
    kept = {device: run_stage(config, 1, 0, device).passes.kept["x"] for device in CUDA}
    assert kept["gpu"] > kept["cpu"]


@pytest.mark.parametrize("case", ["attention", "mamba2", "mlp"])
def test_the_peak_of_a_dry_run_is_that_of_a_real_pass(case):
    config = config_of(CASES[case])
    module, tokens = model_on_cpu(config)
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with LiveMemory([*module.parameters(), tokens], Phase("all")) as memory:
        loss, _ = module(tokens, tokens)
        loss.backward(torch.ones_like(loss))
    passes = run_stage(config, 1, 0, "cpu").passes
    dry = passes.temporaries + sum(passes.kept.values())
    assert dry == pytest.approx(memory.largest[Phase("all")], rel=0.01)


def inputs(*shapes, dtype=torch.bfloat16):
    return [torch.zeros(shape, dtype=dtype, device="meta", requires_grad=True) for shape in shapes]


def kept_on_a_gpu(function, *tensors):
    with choosing_for("cuda"):
        _, saved = saved_in(lambda: function(*tensors))
    return sum(storage.nbytes() for storage in saved.values())


def test_fused_kernels_keep_inputs_outputs_and_a_number_for_each_row():
    q, k, v = inputs((2, 64, 4, 16), (2, 64, 2, 16), (2, 64, 2, 16))
    assert kept_on_a_gpu(attention, q, k, v) == 2 * (2 * q.numel() + k.numel() + v.numel()) + 4 * 2 * 64 * 4
    x, weight = inputs((2, 64, 32), (32,))
    assert kept_on_a_gpu(lambda *t: rms_norm(*t, 1e-5), x, weight) == 2 * (x.numel() + 32) + 4 * 2 * 64


def test_what_stands_for_fused_attention_keeps_as_much_as_the_kernel_on_a_cpu():
    q, k, v = (torch.randn(2, 4, 64, 16).bfloat16().requires_grad_() for _ in range(3))
    _, saved = saved_in(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    dry = kept_on_a_gpu(attention, *inputs(*[(2, 64, 4, 16)] * 3))
    assert dry == sum(storage.nbytes() for storage in saved.values())


def test_grouped_heads_in_float32_keep_their_scores_on_a_gpu():
    shapes = (1, 256, 4, 16), (1, 256, 2, 16), (1, 256, 2, 16)
    assert kept_on_a_gpu(attention, *inputs(*shapes, dtype=torch.float32)) > 4 * 4 * 256 * 256
    assert kept_on_a_gpu(attention, *inputs(*shapes)) < 4 * 256 * 256


def test_a_large_vocabulary_peaks_in_the_loss():
    """Logits, their gradient and their probabilities in float32."""
    passes = run_stage(config_of(CASES["mlp"], vocab_size=32000), 1, 0, "cpu").passes
    logits = BATCH * SEQ_LEN * 32000 * 4
    assert passes.peak == f"backward pass of {LOSS}"
    assert 2 * logits < passes.loss < 4 * logits
    assert passes.kept[LOSS] == pytest.approx(logits, rel=0.01)


def test_on_a_gpu_no_logits_are_kept(monkeypatch):
    monkeypatch.setattr("hybridtron.ops.triton.cross_entropy._BLOCK_LOGITS", BATCH * SEQ_LEN * 2048)
    passes = run_stage(config_of(CASES["mlp"], vocab_size=32000), 1, 0, "gpu").passes
    logits, gradient = BATCH * SEQ_LEN * 32000 * 4, 32000 * HIDDEN * 4
    assert passes.kept[LOSS] < logits / 50
    assert gradient < passes.loss < gradient + logits / 10


def test_recomputation_moves_bytes_from_what_is_kept_to_the_backward_pass():
    none, full = (
        run_stage(config_of(CASES["mamba2"], pattern="8*x", parallel={"recompute": how}), 1, 0, "gpu").passes
        for how in ("none", "full")
    )
    assert full.kept["x"] == 8 * BATCH * SEQ_LEN * HIDDEN * 4
    assert full.layer >= none.layer + (none.kept["x"] - full.kept["x"]) / 8 * 0.5


@pytest.fixture
def small_tensors_move(monkeypatch):
    monkeypatch.setattr("hybridtron.model.activation_offload.SMALLEST", 1)


def total(passes):
    return sum(passes.kept.values()) + passes.temporaries


@pytest.mark.usefixtures("small_tensors_move")
@pytest.mark.parametrize("case", ["attention", "mamba2", "moe", "rwkv7"])
def test_activations_of_some_layers_wait_in_cpu_memory(case):
    """Those of three layers of eight, of which the GPU holds one or two at a time."""
    none, some, every = (
        run_stage(config_of(CASES[case], pattern="8*x", parallel={"cpu_offload_layers": n}), 1, 0, "gpu").passes
        for n in (0, 3, 8)
    )
    layer = none.kept["x"] / 8
    assert some.kept["x"] == pytest.approx(5 * layer, rel=0.03)  # in rwkv7 the others keep what the first one made
    assert every.kept.get("x", 0) == 0
    assert total(none) - total(some) == pytest.approx(3 * layer, rel=0.05)
    assert total(every) < total(none) - 5 * layer
    assert 3 * layer * 0.97 <= some.host <= 3 * layer * 2  # rounded up to powers of two
    assert every.host == pytest.approx(some.host * 8 / 3, rel=0.03)


@pytest.mark.usefixtures("small_tensors_move")
def test_cpu_memory_of_a_dry_run_is_what_a_real_pass_sends():
    """The real pass takes the implementations of CUDA on the CPU."""
    config = config_of(CASES["mamba2"], pattern="4*x", parallel={"cpu_offload_layers": 2})
    module, tokens = model_on_cpu(config)
    host = offloaded(module, 2)
    with choosing_for("cuda"), patch("hybridtron.ops.dispatch.have_no_values", return_value=True):
        module(tokens, tokens)
        with patch("hybridtron.planner.host_memory.pinned_bytes", lambda size: size):
            assert run_stage(config, 1, 0, "gpu").passes.host == host.sent


class UncountedHost:
    """Copies into arrays, which are no tensors."""

    device = "cpu"

    def send(self, storages):
        return [bytes_of(storage).numpy().copy() for storage in storages], None

    def fetch(self, copies):
        return [torch.from_numpy(copy).clone() for copy in copies], None

    def wait(self, event):
        pass


@pytest.mark.usefixtures("small_tensors_move")
def test_the_peak_with_activations_in_cpu_memory_is_that_of_a_real_pass():
    """With the implementations of a CPU in both."""
    config = config_of(CASES["mamba2"], pattern="6*x", parallel={"cpu_offload_layers": 4})
    module, tokens = model_on_cpu(config)
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    module.offload = ActivationOffload(module.layer_list, 4, UncountedHost())
    with LiveMemory([*module.parameters(), tokens], Phase("all")) as memory:
        loss, _ = module(tokens, tokens)
        loss.backward(torch.ones_like(loss))
    with patch("hybridtron.planner.dry_run.choosing_for", lambda device: choosing_for("cpu")):
        passes = run_stage(config, 1, 0, "gpu").passes
    assert total(passes) == pytest.approx(memory.largest[Phase("all")], rel=0.01)


def test_on_a_cpu_nothing_moves():
    with_key, without = (
        run_stage(config_of(CASES["mlp"], parallel={"cpu_offload_layers": n}), 1, 0, "cpu").passes for n in (2, 0)
    )
    assert with_key == without
    assert with_key.host == 0


def test_a_process_is_compared_with_its_memory():
    stages = [StageMemory(40 * GIB, 10 * GIB, 5 * GIB, 2 * GIB, 1, 6 * GIB, size * GIB) for size in (3, 20)]
    assert Fit.of(Capacity.of("gpu", 80), stages) == Fit(80 * GIB, 83 * GIB, 1, False)
    assert Fit.of(Capacity.of("gpu", 90), stages).fits is True
    unknown = [StageMemory(40 * GIB, 10 * GIB, 5 * GIB, 2 * GIB, 1)]
    assert [Fit.of(Capacity.of("gpu", gib), unknown).fits for gib in (80, 50)] == [None, False]


@pytest.mark.parametrize("values", [{"device": "tpu"}, {"memory_gib": 0}, {"overhead_gib": -1}])
def test_impossible_memory_is_refused(values):
    with pytest.raises(UserError, match=f"^{next(iter(values))} = "):
        Capacity.of(**values)


def test_totals_add_up():
    config = config_of(CASES["attention"])
    (stage,) = plan(config, 1, dry_run=True, capacity=Capacity.of("gpu", 80, 1)).stages
    sizes = [stage.parameter_bytes, stage.gradient_bytes, stage.optimizer_bytes, stage.activation_bytes]
    assert stage.total_bytes == sum(sizes) + stage.memory.temporaries + GIB

import pytest
import torch
import torch.nn.functional as F

from hybridtron.backends.torch import Linear
from hybridtron.ops import dispatch
from hybridtron.ops import linear as module
from hybridtron.ops.linear import linear, onednn_is_faster
from hybridtron.ops.native import library
from tests.ops.compare import assert_matches, assert_vmaps, count_flops, leaf, saved_bytes

ROWS, IN, OUT = 1024, 256, 256  # the least that oneDNN takes


@pytest.fixture
def _onednn(native, monkeypatch):
    """oneDNN, whatever the processor: its results are right on all."""
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)


def operands(dtype=torch.float32):
    return leaf(4, ROWS // 4, IN, dtype=dtype), leaf(OUT, IN, dtype=dtype), leaf(OUT, dtype=dtype)


def taken(*arguments):
    function = dispatch.select("linear", *arguments)
    return next(entry.name for entry in dispatch.OPERATIONS["linear"].implementations if entry.function is function)


@pytest.mark.usefixtures("_onednn")
@pytest.mark.parametrize("has_bias", [False, True])
def test_matches_float64_as_closely_as_a_sum_of_float32_products_can(has_bias):
    inputs = operands()[: 2 + has_bias]
    assert taken(*inputs, *[None] * (3 - len(inputs))) == "oneDNN"
    assert_matches(linear, F.linear, inputs, 3e-6)


@pytest.mark.usefixtures("_onednn")
def test_a_transposed_weight_is_read_in_place():
    x, weight, _ = operands()
    assert taken(x, weight.t(), None) == "oneDNN"
    assert_matches(lambda x, weight: linear(x, weight.t()), lambda x, weight: x @ weight, (x, weight), 3e-6)


@pytest.mark.usefixtures("_onednn")
@pytest.mark.parametrize("index", range(3))
def test_each_gradient_alone(index):
    inputs = [tensor.requires_grad_(index == i) for i, tensor in enumerate(operands())]
    direction = torch.randn(4, ROWS // 4, OUT).transpose(0, 1).contiguous().transpose(0, 1)
    found, expected = (torch.autograd.grad(op(*inputs), inputs[index], direction)[0] for op in (linear, F.linear))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_onednn")
def test_gradients_have_gradients():
    x, weight, bias = operands()
    slopes = []
    for op in (linear, F.linear):
        (dx,) = torch.autograd.grad(op(x, weight, bias).square().mean(), x, create_graph=True)
        slopes.append(torch.autograd.grad(dx.square().sum(), (x, weight)))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-8)


@pytest.mark.usefixtures("_onednn")
def test_a_shared_weight_handed_to_a_layer_gets_its_gradient():
    x, weight, bias = operands()
    layer = Linear(None, torch.nn.Parameter(bias.detach()))
    layer(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().sum((0, 1)).expand(OUT, IN), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("_onednn")
def test_it_keeps_what_pytorch_keeps():
    x, weight, bias = operands()
    assert saved_bytes(lambda: linear(x, weight, bias)) == saved_bytes(lambda: F.linear(x, weight, bias))


@pytest.mark.usefixtures("_onednn")
def test_vmap():
    assert_vmaps(linear, [tensor.detach() for tensor in operands()[:2]])


@pytest.mark.usefixtures("_onednn")
def test_a_flop_counter_sees_the_products():
    x, weight, _ = operands()
    assert count_flops(lambda: linear(x, weight)) == (2 * ROWS * IN * OUT, 4 * ROWS * IN * OUT)


@pytest.mark.usefixtures("_onednn")
def test_pytorch_takes_all_else():
    x, weight, bias = operands()
    for other in (
        (x[:, 1:], weight, None),
        (x.detach().mT.contiguous().mT, weight, None),
        (x, leaf(OUT, IN + 1)[:, 1:], None),
        (x.double(), weight.double(), None),
        (x.to("meta"), weight.to("meta"), None),
        (x, weight, bias.double()),
    ):
        assert taken(*other) == "PyTorch"
    with torch.autocast("cpu"):
        assert taken(x, weight, None) == "PyTorch"
        assert linear(x, weight).dtype == torch.bfloat16


@pytest.mark.usefixtures("_onednn")
@pytest.mark.parametrize("way", ["bf16 products", "no oneDNN", "no kernels"])
def test_what_was_asked_of_pytorch_or_of_the_kernels_holds(monkeypatch, way):
    x, weight, _ = operands()
    try:
        if way == "bf16 products":
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        elif way == "no oneDNN":
            torch._C._set_mkldnn_enabled(False)
        else:
            monkeypatch.setenv("HYBRIDTRON_NATIVE", "0")
            library.load.cache_clear()
        assert taken(x, weight, None) == "PyTorch"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch._C._set_mkldnn_enabled(True)
        library.load.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_only_the_measured_kind_of_processor_takes_it(monkeypatch, vendor, capability, expected):
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn_is_faster.__wrapped__() is expected

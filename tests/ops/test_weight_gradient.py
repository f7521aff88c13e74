"""Sums of weight gradients: their values, who computes them, and what is asked of apex."""

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridtron.accounting.doctor import examine, show
from hybridtron.ops import vendor
from hybridtron.ops import weight_gradient as module
from hybridtron.ops.device import choosing_for
from hybridtron.ops.dispatch import OPERATIONS, select
from hybridtron.ops.weight_gradient import APEX, add_weight_gradient

ROWS, IN, OUT = 37, 8, 12
AS_DOCUMENTED = """
import torch
calls = []
def wgrad_gemm_accum_fp32(input, d_output, d_weight):
    assert input.is_contiguous() and d_output.is_contiguous() and d_weight.is_contiguous()
    assert input.dtype == d_output.dtype == torch.bfloat16 and d_weight.dtype == torch.float32
    calls.append(tuple(d_weight.shape))
    d_weight.addmm_(d_output.float().t(), input.float())
"""


def operands(dtype=torch.float32, total_dtype=torch.float32, device="cpu"):
    total = torch.randn(OUT, IN, device=device).to(total_dtype)
    return total, torch.randn(ROWS, OUT, device=device).to(dtype), torch.randn(ROWS, IN, device=device).to(dtype)


def taken(*arguments):
    function = select("weight_gradient", *arguments)
    return next(one.name for one in OPERATIONS["weight_gradient"].implementations if one.function is function)


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """Install a module of apex's name with this text, for tensors of a CPU as if they were on CUDA."""

    def install(text):
        (tmp_path / f"{APEX}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, APEX, raising=False)
        monkeypatch.setattr(module, "on_cuda", lambda *_: True)
        vendor._imported.cache_clear()

    yield install
    vendor._imported.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "total_dtype", "bound"),
    [
        (torch.float64, torch.float64, 1e-14),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.float32, 1e-2),
    ],
    ids=str,
)
def test_the_product_is_added_in_place(dtype, total_dtype, bound):
    total, grad, x = operands(dtype, total_dtype)
    grad, x = grad.t().contiguous().t(), torch.cat([x, x], 1)[:, :IN]  # as views come
    expected = total.double() + grad.double().t() @ x.double()
    where = total.data_ptr()
    add_weight_gradient(total, grad, x)
    assert total.data_ptr() == where
    assert (total - expected).norm() <= bound * expected.norm()


def test_who_adds():
    narrow = operands(torch.bfloat16)
    assert taken(*operands()) == taken(*operands(torch.bfloat16, torch.bfloat16)) == "PyTorch, in the product"
    assert taken(*narrow) == taken(*operands(torch.float32, torch.float64)) == "PyTorch, after the product"
    with choosing_for("cuda"):
        assert taken(*(each.to("meta") for each in narrow)) == "PyTorch, in a float32 product"
        assert taken(*narrow) == "PyTorch, after the product"  # a CPU, which has no such product
        assert taken(*operands(torch.float32, torch.float64)) == "PyTorch, after the product"


def test_a_flop_counter_sees_every_product():
    """PyTorch's knows no product that widens."""
    for arguments in (operands(), operands(torch.bfloat16)):
        with choosing_for("cuda"), FlopCounterMode(display=False) as counter:
            add_weight_gradient(*arguments)
        assert counter.get_total_flops() == 2 * ROWS * IN * OUT


class TestApex:
    def test_it_adds_narrow_factors(self, apex):
        apex(AS_DOCUMENTED)
        total, grad, x = operands(torch.bfloat16)
        expected = total.double() + grad.double().t() @ x.double()
        add_weight_gradient(total, grad.t().contiguous().t(), torch.cat([x, x], 1)[:, :IN])
        assert vendor.vendor_function(APEX, "calls") == [(OUT, IN)]
        assert (total - expected).norm() <= 1e-6 * expected.norm()

    def test_it_is_not_asked_for_the_rest(self, apex):
        apex(AS_DOCUMENTED)
        total, grad, x = operands(torch.bfloat16)
        assert taken(total, grad, x) == "apex"
        for other in (operands(), operands(torch.bfloat16, torch.bfloat16), (total.t().contiguous().t(), grad, x)):
            assert taken(*other) != "apex"

    def test_one_that_does_not_import_gives_one_warning(self, apex, caplog):
        apex("raise ImportError('libcudart.so.12: cannot open shared object file')")
        for _ in range(2):
            total, grad, x = operands(torch.bfloat16)
            expected = total + grad.t() @ x
            add_weight_gradient(total, grad, x)
            assert torch.equal(total, expected)
        assert [record.getMessage() for record in caplog.records] == [
            f"{APEX} is installed but not used: importing it failed: libcudart.so.12: cannot open shared object file"
        ]

    @pytest.mark.parametrize(
        ("version", "text", "row"),
        [
            (None, None, "not installed: PyTorch"),
            ("0.1", None, "0.1: PyTorch"),
            ("0.1", AS_DOCUMENTED, "0.1: apex"),
            ("not NVIDIA's", None, "not NVIDIA's: PyTorch"),
        ],
    )
    def test_doctor_says_who_adds(self, apex, monkeypatch, capsys, version, text, row):
        monkeypatch.setattr("hybridtron.accounting.doctor._apex", lambda: version)
        monkeypatch.setenv("COLUMNS", "200")
        if text:
            apex(text)
        show(examine())
        printed = " ".join(capsys.readouterr().out.split())
        assert f"apex {row} adds weight gradients up in their products" in printed

"""Every kernel is called with arguments that it took from a real op, one of them spoiled."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hybridtron.model.generation.step_plan import plan_steps
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.outer_conv import outer_conv
from hybridtron.ops.conv.short_conv import short_conv
from hybridtron.ops.elementwise.activations import gelu, relu2, swiglu, swiglu_reference
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.native import library
from hybridtron.ops.native.declarations import CheckedKernel, constants_of
from hybridtron.ops.ssm.selective_scan import selective_scan
from tests.model.generation.test_step_plan import hybrid
from tests.ops.compare import leaf
from tests.ops.ssm import test_mamba2, test_selective_scan

ROOT = Path(__file__).parents[3]
SOURCES = [file.read_text() for file in sorted((ROOT / "hybridtron" / "ops" / "native").glob("*.c"))]
KERNELS = re.findall(r"^KERNEL (\w+)", "\n".join(SOURCES), re.MULTILINE)


@pytest.fixture(scope="module")
def calls():
    """The last arguments of every kernel, by its name."""
    kernels, reason = library.load()
    assert reason is None
    seen, methods = {}, dict(vars(kernels))

    def recording(name, method):
        def call(*arguments):
            seen[name] = arguments
            method(*arguments)

        def prepare(*arguments):
            seen[name] = arguments
            return method.prepare(*arguments)

        return CheckedKernel(call, prepare)

    for name, method in methods.items():
        setattr(kernels, name, recording(name, method))
    try:
        torch.manual_seed(0)
        q = leaf(2, 9, 4, 8)
        outputs = [
            swiglu(leaf(3, 10)),
            relu2(leaf(3, 10)),
            gelu(leaf(3, 10)),
            rms_norm(leaf(3, 10), leaf(10), 1e-5),
            attention(*(leaf(4, 9, 8, 8) for _ in range(3))),
            short_conv(leaf(2, 9, 5), leaf(5, 4), leaf(5), "silu"),
            long_conv(leaf(2, 30, 5), leaf(5, 30)),
            outer_conv(*(leaf(2, 9, 3, 8) for _ in range(3)), leaf(3, 9)),
            attention(apply_rotary(q, *rotary_tables(9, 6)), q, q, sinks=leaf(4)),
            attention(q, q, q, softcap=2.0, decays=-leaf(2, 9, 4).exp().cumsum(1)),
            attention(*(leaf(2, 9, 4, 32) for _ in range(3)), softcap=2.0),
            selective_scan(*test_selective_scan.arguments(40)),
            test_mamba2.core(*test_mamba2.arguments(9, 4, 2), chunk_size=3),
        ]
        sum(output.square().sum() for output in outputs).backward()
        plan_steps(step_model := hybrid(), step_model.initial_state(2), 2)
    finally:
        for name, method in methods.items():
            setattr(kernels, name, method)
    return seen


def call(name, arguments):
    getattr(library.load()[0], name)(*arguments)


def spoiled(arguments, index, value):
    return [*arguments[:index], value, *arguments[index + 1 :]]


def tensors(arguments):
    found = [(index, argument) for index, argument in enumerate(arguments) if isinstance(argument, torch.Tensor)]
    assert found
    return found


def test_constants_of_enums_are_read_whole():
    source = "enum { LANES = 16, KEYS = 1048576 /* a window, = 5 */ };\nenum {\n    TAPS = 4,\n};\nlong x = 3;"
    assert constants_of(source) == {"LANES": 16, "KEYS": 1048576, "TAPS": 4}


@pytest.mark.parametrize("value", ["1 << 20", "1 * 4", "16L", "0x10", "LANES", "-1"])
def test_a_constant_that_is_more_than_digits_is_refused(value):
    with pytest.raises(ValueError, match=re.escape(f"constant KEYS = {value} of the kernels: expected NAME = digits")):
        constants_of(f"enum {{ LANES = 16, KEYS = {value} /* a window */ }};")


def test_every_kernel_is_tried(calls):
    assert set(calls) == set(KERNELS)
    for name, arguments in calls.items():
        call(name, arguments)


@pytest.mark.parametrize("name", KERNELS)
def test_another_number_of_arguments_is_refused(calls, name):
    for arguments in (calls[name][:-1], (*calls[name], 1), ()):
        with pytest.raises(TypeError, match=f"kernel {name}: {len(arguments)} arguments, expected {len(calls[name])}"):
            call(name, arguments)


@pytest.mark.parametrize(
    "other",
    [
        lambda tensor: tensor.double(),
        lambda tensor: tensor.bfloat16(),
        lambda tensor: tensor.int(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.as_subclass(type("Subclass", (torch.Tensor,), {})),
        torch._neg_view,
        lambda tensor: tensor.data_ptr(),
        lambda tensor: "tensor",
    ],
    ids=["float64", "bfloat16", "int32", "meta", "subclass", "negated view", "address", "text"],
)
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_no_plain_float32_is_refused(calls, name, other):
    """Or no plain int64, where a kernel wants that."""
    for index, tensor in tensors(calls[name]):
        dtype = str(tensor.dtype).removeprefix("torch.")
        with pytest.raises(TypeError, match=f"kernel {name}: .*, expected a plain {dtype} tensor on the CPU"):
            call(name, spoiled(calls[name], index, other(tensor.detach())))


@pytest.mark.parametrize("name", KERNELS)
def test_none_is_refused_where_an_array_is_not_optional(calls, name):
    optional = {"sinks", "sunk", "sums"} if name.startswith("softmax") else set()
    for index, tensor in tensors(calls[name]):
        if tensor.numel() > 1 and not optional and (name, index) != ("mamba2_step", 9):  # the bias of the convolution
            with pytest.raises(TypeError, match=f"kernel {name}: "):
                call(name, spoiled(calls[name], index, None))


@pytest.mark.parametrize(
    "other",
    [
        lambda tensor: tensor.new_zeros(*tensor.shape, 2)[..., 0],
        lambda tensor: tensor.new_zeros(tensor.shape)[:0],
        lambda tensor: tensor.new_zeros(1),
        lambda tensor: tensor.new_zeros(1).expand(tensor.shape),
    ],
    ids=["not contiguous", "empty", "short", "expanded"],
)
@pytest.mark.parametrize("name", KERNELS)
def test_other_layouts_are_refused(calls, name, other):
    for index, tensor in tensors(calls[name]):
        with pytest.raises(ValueError, match=rf"kernel {name}: \w+ has shape .* and strides .*, expected at least "):
            call(name, spoiled(calls[name], index, other(tensor.detach())))


@pytest.mark.parametrize("name", KERNELS)
def test_numbers_that_are_none_are_refused(calls, name):
    for index, argument in enumerate(calls[name]):
        if isinstance(argument, int):
            for value, error in ((-1, ValueError), (1 << 63, ValueError), (1.0, TypeError), (True, TypeError)):
                with pytest.raises(error, match=f"kernel {name}: "):
                    call(name, spoiled(calls[name], index, value))
        elif isinstance(argument, float):
            with pytest.raises(TypeError, match=f"kernel {name}: "):
                call(name, spoiled(calls[name], index, torch.ones(1)))


@pytest.mark.parametrize(
    ("name", "index", "value", "requirement"),
    [
        ("rotate", 4, 5, "2 * half <= width"),
        ("softmax_forward", 1, 0, "queries >= 1"),
        ("softmax_backward", 3, 1 << 40, "queries + ahead <= keys"),
        ("softmax_tile_forward", 1, 0, "queries >= 1"),
        ("softmax_tile_forward", 8, None, "(own is None) == (decays is None)"),
        ("softmax_tile_backward", 4, 0, "window >= 1"),
        ("scan_forward", 2, 65, "states <= MOST_STATES"),
        ("conv_forward", 1, 0, "length >= 1"),
        ("conv_backward", 4, 17, "1 <= taps <= MOST_TAPS"),
        ("ssd_matrices", 2, 0, "groups >= 1"),
        ("scale_tokens", 2, 3, "heads % groups == 0"),
        ("gated_norm_backward", 0, 0, "seq_len >= 1"),
        ("attention_step", 2, 0, "kv >= 1"),
        ("attention_step", 4, 9, "2 * half <= dim"),
        ("mamba2_step", 5, 0, "taps >= 1"),
        ("short_conv_forward", 3, 33, "1 <= taps <= MOST_CONV_TAPS"),
        ("long_conv_backward", 3, 31, "1 <= taps <= seq_len"),
        ("outer_conv_forward", 1, 2049, "seq_len <= MOST_OUTER_TOKENS"),
        ("outer_conv_backward", 3, 12, "width % 8 == 0"),
        ("heads_forward", 2, 1025, "keys <= MOST_HEAD_KEYS"),
        ("heads_backward", 4, 3, "heads % kv == 0"),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(calls, name, index, value, requirement):
    with pytest.raises(ValueError, match=re.escape(f"kernel {name}: expected {requirement}, got ")):
        call(name, spoiled(calls[name], index, value))


def test_a_prepared_call_is_checked_when_it_is_prepared_and_holds_its_memory():
    kernel, y = library.load()[0].swiglu_forward, torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"kernel swiglu_forward: y has shape \[2, 4\]"):
        kernel.prepare(3, 4, torch.ones(3, 8), 8, y[:2])
    prepared = kernel.prepare(3, 4, torch.ones(3, 8), 8, y)
    prepared()
    torch.testing.assert_close(y, swiglu_reference(torch.ones(3, 8)))


def test_an_element_too_few_is_refused_and_the_last_one_is_written():
    x, y = torch.ones(3, 9), torch.zeros(12)
    for rows, given in ((3, y[:11]), (4, y)):
        with pytest.raises(ValueError, match=r"expected at least \[rows, "):
            call("swiglu_forward", (rows, 4, x[:, :8], 9, given))
    with pytest.raises(ValueError, match=r"x has shape \[3, 7\]"):
        call("swiglu_forward", (3, 4, x[:, :7], 9, y))
    with pytest.raises(ValueError, match=r"strides \[x_step, 1\] with rows = 3, width = 4, x_step = 8"):
        call("swiglu_forward", (3, 4, x, 8, y))
    assert not y.any()
    call("swiglu_forward", (3, 4, x[:, 1:], 9, y))
    assert y[11] != 0


def test_a_negated_view_is_read_as_what_it_stands_for():
    x = torch.randn(3, 10)
    torch.testing.assert_close(swiglu(torch._neg_view(x)), swiglu_reference(-x))


def test_calls_are_checked_without_assertions_too():
    code = (
        "import torch; from hybridtron.ops.native.library import load\n"
        "for y in (torch.ones(3), torch.ones(12).double()):\n"
        "    try: load()[0].swiglu_forward(3, 4, torch.ones(3, 8), 8, y)\n"
        "    except (TypeError, ValueError) as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout.split() == ["ValueError", "TypeError"], done.stderr


def test_kernels_that_are_gone_in_backward_are_named(monkeypatch):
    x = test_selective_scan.arguments(9)
    y = selective_scan(*x)
    monkeypatch.setenv("HYBRIDTRON_NATIVE", "0")
    library.load.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="are gone: switched off by HYBRIDTRON_NATIVE=0"):
            y.sum().backward()
    finally:
        monkeypatch.undo()
        library.load.cache_clear()


@pytest.mark.parametrize("kernel", KERNELS)
def test_checking_a_call_runs_no_torch_function_mode(calls, kernel):
    """Training on a CPU is under one, and a call reads dozens of attributes of tensors."""
    seen = []

    class Recording(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    tensors = [argument for argument in calls[kernel] if isinstance(argument, torch.Tensor)]
    with Recording():
        getattr(library.load()[0], kernel)(*calls[kernel])
        library.kernels_for(*tensors)
        assert seen == []
        tensors[0].dtype  # noqa: B018
    assert len(seen) == 1

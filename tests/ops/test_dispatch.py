"""Each op runs the implementation that the table of `dispatch` names, and `hybridtron doctor` prints that table."""

import json

import pytest
import torch

from hybridtron.cli.main import main
from hybridtron.ops import dispatch
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.conv.long_conv import convolve, long_conv
from hybridtron.ops.conv.outer_conv import outer_conv
from hybridtron.ops.conv.short_conv import gated_short_conv, short_conv
from hybridtron.ops.device import choosing_for
from hybridtron.ops.elementwise.activations import gelu, relu2, swiglu
from hybridtron.ops.elementwise.cross_entropy import cross_entropy, linear_cross_entropy
from hybridtron.ops.elementwise.norm import gated_rms_norm, norm_and_gate, rms_norm
from hybridtron.ops.linear import linear
from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule
from hybridtron.ops.linear_attention.gla import gla
from hybridtron.ops.linear_attention.kernelized import linear_attention
from hybridtron.ops.linear_attention.retention import retention
from hybridtron.ops.linear_attention.rwkv6 import rwkv6
from hybridtron.ops.linear_attention.rwkv7 import rwkv7
from hybridtron.ops.moe.grouped_linear import grouped_linear
from hybridtron.ops.native import library
from hybridtron.ops.ssm.mamba2 import mamba2_core
from hybridtron.ops.ssm.selective_scan import selective_scan
from hybridtron.ops.ssm.ssd import ssd
from hybridtron.ops.triton import launch
from hybridtron.ops.weight_gradient import add_weight_gradient

CPU = torch.device("cpu")
X, HEADS = torch.ones(2, 4, 6), torch.ones(2, 4, 2, 8)
LONG = torch.ones(2, 30, 6)
PACKED = torch.ones(4, 2, 2 * 8 + 2 * 3 + 2)
HEAD_GATES = -torch.ones(2, 4, 2)
# a call of each operation on its first float32 argument
CALLS = {
    "attention": (attention, (HEADS, HEADS, HEADS)),
    "adjusted_attention": (lambda *t: attention(*t, None, None, None, 2.0), (HEADS, HEADS, HEADS)),
    "apply_rotary": (apply_rotary, (HEADS, *rotary_tables(4, 8))),
    "selective_scan": (selective_scan, (X, X, -torch.ones(6, 3), X[..., :3], X[..., :3], torch.ones(6))),
    "mamba2_core": (
        lambda *t: mamba2_core(*t, head_dim=4, state_dim=3, chunk_size=2, eps=1e-5),
        (PACKED, torch.ones(14, 4), torch.ones(14), torch.ones(2), -torch.ones(2), torch.ones(2), torch.ones(8)),
    ),
    "ssd": (lambda *t: ssd(*t, 2), (HEADS, -HEAD_GATES, -torch.ones(2), HEADS, HEADS, torch.ones(2))),
    "linear_attention": (lambda *t: linear_attention(*t, 2, True), (HEADS, HEADS, HEADS)),
    "retention": (lambda *t: retention(*t, -torch.ones(2), 2), (HEADS, HEADS, HEADS)),
    "gla": (lambda *t: gla(*t, 2), (HEADS, HEADS, HEADS, -HEADS)),
    "rwkv6": (lambda *t: rwkv6(*t, 2), (HEADS, HEADS, HEADS, -HEADS, torch.ones(2, 8))),
    "rwkv7": (lambda *t: rwkv7(*t, 2), (HEADS, -HEADS / 2, HEADS, HEADS, -HEADS / 3, HEADS / 3)),
    "gated_delta_rule": (lambda *t: gated_delta_rule(*t, 2), (HEADS, HEADS, HEADS, HEAD_GATES, -HEAD_GATES)),
    "short_conv": (short_conv, (X, torch.ones(6, 4))),
    "gated_short_conv": (gated_short_conv, (X, X, X, torch.ones(6, 4))),
    "long_conv": (long_conv, (LONG, torch.ones(6, 30))),
    "convolve": (lambda u, h: convolve(u, h, 30), (LONG.mT.unsqueeze(2), torch.ones(6, 30))),
    "outer_conv": (outer_conv, (HEADS, HEADS, HEADS, torch.ones(2, 4))),
    "linear": (linear, (torch.ones(1024, 256), torch.ones(256, 256))),
    "weight_gradient": (add_weight_gradient, (torch.zeros(5, 6), torch.ones(4, 5), torch.ones(4, 6))),
    "grouped_linear": (lambda *t: grouped_linear(*t, (1, 3)), (torch.ones(4, 6), torch.ones(2, 5, 6))),
    "rms_norm": (lambda *t: rms_norm(*t, 1e-5), (X, torch.ones(6))),
    "gated_rms_norm": (lambda *t: gated_rms_norm(*t, 1e-5, 2), (X, X, torch.ones(6))),
    "norm_and_gate": (lambda *t: norm_and_gate(*t, 1e-5), (HEADS, HEADS, torch.ones(8))),
    "swiglu": (swiglu, (X,)),
    "relu2": (relu2, (X,)),
    "gelu": (gelu, (X,)),
    "cross_entropy": (lambda x: cross_entropy(x, torch.zeros(2, 4, dtype=torch.long)), (X,)),
    "linear_cross_entropy": (
        lambda x, w: linear_cross_entropy(x, w, torch.zeros(2, 4, dtype=torch.long), lambda: x @ w.t()),
        (X, torch.ones(5, 6)),
    ),
}
# other arguments and the implementation that they take
OTHER_CALLS = [
    ("selective_scan", (X, X, -torch.ones(6, 65), *2 * (torch.ones(2, 4, 65),), torch.ones(6)), "PyTorch, in tiles"),
    ("mamba2_core", (PACKED, torch.ones(14, 17), *CALLS["mamba2_core"][1][2:]), "short_conv, ssd and gated_rms_norm"),
    ("long_conv", (LONG, torch.ones(6, 20)), "short_conv"),
    ("long_conv", (torch.ones(1, 600, 6), torch.ones(6, 600)), "convolve, in segments"),
    ("short_conv", (X, torch.ones(6, 33)), "PyTorch, in tiles"),
    ("outer_conv", (*3 * (torch.ones(1, 7, 1, 1),), torch.ones(1, 7)), "PyTorch, by Fourier transforms"),
    ("outer_conv", (*3 * (torch.ones(1, 7, 1, 4),), torch.ones(1, 7)), "PyTorch, by pairs of tokens"),
    ("apply_rotary", (HEADS.mT.contiguous().mT, *rotary_tables(4, 8)), "PyTorch, into the result"),
    ("linear", (X, torch.ones(5, 6)), "PyTorch"),
    ("swiglu", (X.bfloat16(),), "PyTorch, in blocks of rows"),
    ("rms_norm", (X.double(), torch.ones(6).double()), "PyTorch, in blocks of rows"),
    ("relu2", (X.to("meta"),), "PyTorch, in blocks of rows"),
    ("attention", 3 * (torch.ones(2, 4, 16, 8),), "C kernels, small heads"),
    ("attention", (HEADS.bfloat16(), HEADS.bfloat16(), HEADS.bfloat16()), "C kernels for the softmax"),
    ("attention", (HEADS, HEADS, HEADS, None, 1.0, torch.ones(2)), "C kernels for the softmax"),
    ("attention", (HEADS, HEADS, HEADS, None, -1.0, torch.ones(2)), "PyTorch, in blocks of queries"),
    ("attention", (HEADS.double(), HEADS.double(), HEADS.double()), "PyTorch, in blocks of queries"),
    ("attention", (HEADS.to("meta"), HEADS.to("meta"), HEADS.to("meta")), "PyTorch, in blocks of queries"),
]  # fmt: skip


@pytest.fixture
def ran(monkeypatch):
    """The implementations and kernels that run, by operation and, for kernels, under None."""
    found = {}

    def recording(operation, name, function):
        def call(*arguments, **options):
            found.setdefault(operation, []).append(name)
            return function(*arguments, **options)

        return call

    for name, operation in list(dispatch.OPERATIONS.items()):
        implementations = tuple(
            one._replace(function=recording(name, one.name, one.function)) for one in operation.implementations
        )
        monkeypatch.setitem(dispatch.OPERATIONS, name, operation._replace(implementations=implementations))
    kernels = library.load()[0]
    for name, method in vars(kernels).items() if kernels else ():
        monkeypatch.setattr(kernels, name, recording(None, name, method))
    return found


def names_kernels(ran, taken):
    """Whether the implementation taken, or one of an operation that it calls, has its name from the C kernels."""
    called = [name for operation, names in ran.items() if operation is not None for name in names]
    return any(name.startswith("C kernels") for name in (taken, *called))


def run(operation):
    op, inputs = CALLS[operation]
    return op(*inputs)


def table():
    return {row["operation"]: row for row in dispatch.implementation_table(CPU)}


def test_every_operation_is_called_here():
    assert CALLS.keys() == table().keys() == dispatch.OPERATIONS.keys()


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.usefixtures("form")
def test_float32_runs_what_the_table_says(ran, operation):
    taken = table()[operation]["taken"]
    run(operation)
    if len(dispatch.OPERATIONS[operation].implementations) > 1:
        assert ran[operation] == [taken]
    else:
        assert taken == dispatch.OPERATIONS[operation].implementations[0].name
    assert (None in ran) == names_kernels(ran, taken)


@pytest.mark.parametrize(("operation", "inputs", "expected"), OTHER_CALLS)
def test_other_arguments_run_what_their_condition_says(ran, operation, inputs, expected):
    CALLS[operation][0](*inputs)
    assert ran[operation] == [expected]
    assert (None in ran) == names_kernels(ran, expected)


@pytest.mark.parametrize(
    "operation", ["attention", "apply_rotary", "selective_scan", "ssd", "rms_norm", "swiglu", "relu2"]
)
def test_transforms_run_plain_operations(ran, operation):
    op, inputs = CALLS[operation]
    torch.func.vmap(op)(*(tensor.expand(2, *tensor.shape) for tensor in inputs))
    assert ran == {operation: ["plain PyTorch"]}


@pytest.mark.usefixtures("form")
def test_doctor_prints_the_table(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["implementations"] == dispatch.implementation_table(CPU)
    assert report["operations"] == {row["label"]: row["taken"] for row in report["implementations"]}
    native = library.status() is None
    assert report["operations"]["mamba2 scan"] == ("C kernels" if native else "short_conv, ssd and gated_rms_norm")
    assert report["native_kernels"] == ("compiled for this machine" if native else library.status())
    assert main(["doctor"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for row in report["implementations"]:
        assert f"{row['label']} {row['taken']}" in printed


def test_doctor_says_what_a_bfloat16_call_takes_on_cuda(capsys):
    assert main(["doctor"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for row in table().values():
        assert f"{row['label']} {row['taken']} {row['taken_on_cuda']}" in printed


@pytest.mark.parametrize(("sequences", "taken"), [(65535, "Triton"), (65536, "PyTorch, in chunks")])
def test_scans_with_more_programs_than_a_grid_of_cuda_has_are_left_to_pytorch(sequences, taken):
    heads = torch.empty(sequences, 1, 1, 16, device="meta")
    with choosing_for("cuda"):
        for name, inputs in {"gla": 4 * (heads,), "gated_delta_rule": (*3 * (heads,), *2 * (heads[..., 0],))}.items():
            function = dispatch.select(name, *inputs)
            found = [each.name for each in dispatch.OPERATIONS[name].implementations if each.function is function]
            assert found == [taken]


def test_the_environment_switches_triton_kernels_off_in_dry_runs_too(monkeypatch):
    tokens = torch.empty(2, 8, device="meta", dtype=torch.bfloat16)
    with choosing_for("cuda"):
        assert launch.takes(tokens)
        monkeypatch.setenv("HYBRIDTRON_TRITON", "0")
        assert not launch.takes(tokens)

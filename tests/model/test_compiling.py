"""Layers that torch.compile compiles, by backends that need no C++ compiler: what they compute, share and keep."""

import pytest
import torch

from hybridtron.api.model import build_model
from hybridtron.errors import UserError
from hybridtron.model import compiling
from hybridtron.model.compiling import compile_layers
from tests.distributed.layouts import Layout
from tests.model.compiled import in_one_process
from tests.model.late_host import offloaded

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "layout",
    [
        Layout("moe"),  # as many rows for an expert as its router chooses
        Layout("packed"),  # documents of other lengths in each step
        Layout("rwkv"),
        Layout("hybrid", parallel={"recompute": {"mamba": "full", "attn": "selective"}}),
    ],
    ids=lambda layout: layout.model,
)
def test_losses_and_gradients_are_those_without_and_nothing_is_compiled_after_the_first_step(layout):
    seen = in_one_process(layout, "aot_eager")
    assert seen["losses"] < 1e-5
    assert seen["gradients"] < 1e-5
    first, *later = seen["compiled"]
    assert first > 0
    assert later == [first] * len(later)


def model_of(pattern, width=16):
    blocks = {"mlp": {"type": "swiglu", "ffn_hidden_size": 32}, "ffn": {"type": "mlp", "ffn_hidden_size": 48}}
    model = {"hidden_size": width, "blocks": blocks, "pattern": pattern}
    return build_model({"model": model, "data": {"seq_len": 8}})


def compile_with_eager(model):
    """Return the number of graphs that its forward pass makes."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_layers([model], CPU, backend)
    model(torch.zeros(2, 8, dtype=torch.int64))
    return len(graphs)


def test_layers_of_one_block_share_what_is_compiled():
    assert compile_with_eager(model_of("mlp ffn mlp mlp ffn")) == compile_with_eager(model_of("mlp ffn")) == 2


def test_all_of_many_models_in_one_process_are_compiled(monkeypatch):
    """As in a search over widths: torch compiles a function so many times, and then runs it as it is."""
    monkeypatch.setattr(compiling, "VARIANTS", 4)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(recompile_limit=4):
        for width in (8, 8, 16, 24, 32):
            model = model_of("mlp ffn", width)
            compile_layers([model], CPU, backend)
            model(torch.zeros(2, 8, dtype=torch.int64))
    assert len(graphs) == 2 * 4  # that of width 8 is used again


def test_names_of_parameters_and_hooks_of_layers_stay():
    model, calls = model_of("mlp ffn"), []
    names = list(model.state_dict())
    for layer in model.layer_list:
        layer.register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    compile_with_eager(model)
    assert list(model.state_dict()) == names
    assert calls == [False, False]


def test_what_compiled_layers_save_waits_in_cpu_memory():
    """With gradients that are the same bit for bit."""
    model, tokens = model_of("mlp ffn mlp"), torch.arange(16).reshape(2, 8)
    torch._dynamo.reset()
    compile_layers([model], CPU, "aot_eager")

    def gradients():
        model.zero_grad()
        model(tokens, tokens)[0].mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    expected = gradients()
    host = offloaded(model, 2)
    assert all(map(torch.equal, gradients(), expected))
    assert [name for name, _ in host.events] == ["send", "send", "sent", "sent", "fetch", "fetch", "fetched", "fetched"]
    assert host.living["copies"] == 0


def test_generation_stays_uncompiled():
    model = model_of("mlp ffn")
    compile_with_eager(model)
    before = torch._dynamo.utils.counters["frames"].copy()
    with torch.no_grad():
        logits, state = model.prefill(torch.zeros(2, 8, dtype=torch.int64), model.initial_state(2))
        model.step(logits.argmax(-1), state)
    assert torch._dynamo.utils.counters["frames"] == before


@pytest.mark.parametrize(
    ("device", "variable", "language", "programs"),
    [("cpu", "CXX", r"C\+\+", r"g\+\+"), ("cuda", "CC", "C", "gcc or clang")],
)
def test_without_a_compiler_it_is_refused(device, variable, language, programs, monkeypatch):
    """Inductor asks for g++ alone where CXX names none, and Triton on CUDA for a C compiler."""

    def is_refused():
        return pytest.raises(UserError, match=rf"train.compile = true: there is no {language} compiler \({programs}\);")

    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(compiling.shutil, "which", {"clang++": "/usr/bin/clang++"}.get)
    with is_refused():
        compile_layers([model_of("mlp")], torch.device(device))
    programs = "no-such-compiler"
    monkeypatch.setenv(variable, programs)
    with is_refused():
        compile_layers([model_of("mlp")], torch.device(device))


def test_without_triton_it_is_refused_on_cuda(monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="triton is not installed"):
        compile_layers([model_of("mlp")], torch.device("cuda"))

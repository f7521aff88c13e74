"""FP8 linears of Transformer Engine without a GPU: which ones enter which recipe, and their state over a checkpoint.

    NVTE_FRAMEWORK=pytorch python -m tests.backends.transformer_engine.fp8

Needs what `tests.backends.transformer_engine.meta` needs. Forward passes of linears are replaced; updates of scales are
Transformer Engine's own, in its Python form.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from tests.backends.transformer_engine.meta import ANSWERS

NAMES = ("layers.0.mixer.in_proj", "layers.0.mixer.out_proj")
ALL = (*NAMES, "head")
HISTORY = 4


def model(TransformerEngineFP8: Any, backend: Any, recipe: str) -> tuple[Any, Any]:
    from torch import nn

    from hybridtron.tensors import TensorSpec

    spec = TensorSpec((64, 64), None)  # type: ignore[arg-type]
    chunk: Any = nn.Module()
    for name in ALL:
        parent = chunk
        *path, own = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(own, backend.column_linear(spec))
    linears = dict.fromkeys((*NAMES, "layers.9.mixer.in_proj"), spec)  # and one of another stage
    return chunk, TransformerEngineFP8([chunk], linears, recipe, HISTORY, 16, backend.group)


def check_contexts(make: Any, te: Any, manager: Any) -> None:
    seen: dict[int, tuple[bool, str]] = {}

    def forward(self: Any, x: Any) -> Any:
        seen[id(self)] = (manager.is_fp8_enabled(), type(manager.get_fp8_recipe()).__name__)
        return x

    wanted = {
        "tensorwise": "Float8CurrentScaling", "delayed": "DelayedScaling", "blockwise": "Float8BlockScaling",
    }  # fmt: skip
    for recipe, name in wanted.items():
        chunk, _ = make(recipe)
        linears = {each: chunk.get_submodule(each) for each in ALL}
        with patch.object(te.Linear, "forward", forward), patch.object(manager, "reduce_and_update_fp8_tensors"):
            with getattr(chunk, "forward_context", lambda: patch("os.sep", os.sep))():
                for linear in linears.values():
                    linear(torch.zeros(16, 64))
            for each, linear in linears.items():
                enabled, found = seen[id(linear)]
                assert enabled == (each in NAMES), (recipe, each)
                assert not enabled or found == name, (recipe, each, found)
            with torch.no_grad():  # a token of generation
                linears[NAMES[0]](torch.zeros(1, 64))
            assert not seen[id(linears[NAMES[0]])][0], recipe
    print("contexts of", ", ".join(wanted))


def check_evaluation(make: Any, te: Any, manager: Any) -> None:
    """Largest values of passes without gradients do not count."""

    def forward(self: Any, x: Any) -> Any:
        self.fp8_meta["scaling_fwd"].amax_history[0] = 7.0
        return x

    chunk, _ = make("delayed")
    linear = chunk.get_submodule(NAMES[0])
    with patch.object(te.Linear, "forward", forward), patch.object(manager, "reduce_and_update_fp8_tensors"):
        for trains, kept in ((False, 0.0), (True, 7.0)):
            with torch.set_grad_enabled(trains), chunk.forward_context():
                linear(torch.zeros(16, 64))
            assert linear.fp8_meta["scaling_fwd"].amax_history[0].eq(kept).all(), trains
    print("an evaluation leaves no largest values")


def check_state(make: Any, manager: Any) -> None:
    """Some steps, a checkpoint, and the same further steps in a new process: equal scales bit for bit."""

    def steps(chunk: Any, fp8: Any, first: int, stop: int) -> list[torch.Tensor]:
        linears = [chunk.get_submodule(name) for name in NAMES]
        for linear in linears:
            linear.fp8_meta["fp8_group"] = fp8_group
            manager.add_fp8_tensors_to_global_buffer(linear.fp8_meta)
        for step in range(first, stop):
            draw = torch.Generator().manual_seed(step)
            for linear in linears:
                for key in ("scaling_fwd", "scaling_bwd"):
                    amax = linear.fp8_meta[key].amax_history[0]
                    amax.copy_(torch.rand(amax.shape, generator=draw) * 9 + (50 if step == 0 else 0))
            for forward in (True, False):
                manager.reduce_and_update_fp8_tensors(forward=forward)
            fp8.end_step(True)
        return [linear.fp8_meta[key].scale.clone() for linear in linears for key in ("scaling_fwd", "scaling_bwd")]

    def run(first: int, stop: int, state: Any = None) -> tuple[list[torch.Tensor], Any]:
        manager.reset()
        chunk, fp8 = make("delayed")
        recipe = chunk.get_submodule(NAMES[0]).fp8_meta["recipe"]
        manager.autocast_arguments[manager.get_unique_autocast_key(recipe, fp8_group)] = (recipe, fp8_group)
        if state is not None:
            with patch.object(torch.distributed, "all_reduce", side_effect=AssertionError):  # another may have failed
                fp8.state.load_state_dict(state)
            assert str(fp8.state.state_dict()) == str(state)
        return steps(chunk, fp8, first, stop), fp8.state.state_dict()

    fp8_group = None
    whole, _ = run(0, 7)
    for at in (2, HISTORY, 5):
        _, state = run(0, at)
        history = state["amax_history"][NAMES[1]]
        assert history.shape == (HISTORY, 3, 1)
        assert history[:1].gt(0).all()
        assert history[-1].eq(0).all()
        resumed, _ = run(at, 7, state)
        for name_index in range(len(NAMES)):  # inputs, weights and output gradients; nothing else is used
            forward, backward = 2 * name_index, 2 * name_index + 1
            assert torch.equal(whole[forward][:2], resumed[forward][:2]), at
            assert torch.equal(whole[backward][:1], resumed[backward][:1]), at
    print("state of delayed is the same after a checkpoint")


def main() -> None:
    os.environ |= {"NVTE_UNFUSED_FP8_UPDATE": "1", "NVTE_TORCH_COMPILE": "0"}
    import transformer_engine.pytorch as te
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager

    from hybridtron.backends.transformer_engine.backend import TransformerEngineBackend
    from hybridtron.backends.transformer_engine.fp8 import TransformerEngineFP8
    from hybridtron.distributed.cpu_compat import _CudaToCpu
    from hybridtron.planner.fake_process_group import fake_process_group

    with fake_process_group(0, 1), _CudaToCpu():
        group: Any = torch.distributed.group.WORLD
        config = SimpleNamespace(params_dtype=torch.bfloat16, sequence_parallel=False)
        backend: Any = TransformerEngineBackend.__new__(TransformerEngineBackend)
        backend.__dict__ |= {"config": config, "group": group, "dtype": torch.bfloat16, "device": "meta"}
        check_contexts(lambda recipe: model(TransformerEngineFP8, backend, recipe), te, FP8GlobalStateManager)
        check_evaluation(lambda recipe: model(TransformerEngineFP8, backend, recipe), te, FP8GlobalStateManager)
        check_state(lambda recipe: model(TransformerEngineFP8, backend, recipe), FP8GlobalStateManager)


if __name__ == "__main__":
    with patch.multiple(torch.cuda, **ANSWERS), patch("torch.cuda.is_current_stream_capturing", lambda: False):
        main()

"""Every primitive gives on CUDA what it gives on a CPU: forward, backward, one step of the optimizer, generation."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from hybridtron.mixers.registry import MIXERS
from tests.gpu.comparison import assert_near, distance
from tests.gpu.primitives import CASES, PRIMITIVES, ROUTED, built, tokens

pytestmark = pytest.mark.gpu

# Distances relative to the norm of the whole tensor.
LOSSES, GRADIENTS = 1e-5, 1e-3  # float32 on both, with other orders of addition
HALF = 0.05  # bfloat16 on CUDA, float32 with the same weights on a CPU
HALF_OF = dict.fromkeys(ROUTED, 0.2)  # rounding sends a few tokens to other experts
HALF_OF["rwkv7"] = 0.1  # normed keys less a share of themselves; in bfloat16 a CPU is as far
HALF_OF["mamba2 with limited steps and biases"] = 0.1  # and moves a few steps over their limit, where gradients end


def trained_once(model, ids):
    """Return losses, gradients, and parameters after a step of AdamW, by name."""
    ids = ids.to(next(model.parameters()).device)
    losses, log_z = model(ids[:, :-1], ids[:, 1:])
    (losses.mean() + 1e-4 * log_z.square().mean()).backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    torch.optim.AdamW(trained.values(), lr=1e-2, eps=1e-3, fused=True).step()
    return {"losses": losses}, gradients, {name: parameter.detach() for name, parameter in trained.items()}


def test_every_primitive_has_a_row():
    assert PRIMITIVES.keys() == MIXERS.keys()


@pytest.mark.parametrize("case", CASES)
class TestPrimitive:
    def test_float32_losses_gradients_and_updates_are_those_of_the_cpu(self, cuda, case):
        actual, expected = (trained_once(built(case, device), tokens()) for device in (cuda, "cpu"))
        for found, wanted, bound in zip(actual, expected, (LOSSES, GRADIENTS, GRADIENTS), strict=True):
            assert_near(found, wanted, bound)

    def test_bfloat16_losses_and_gradients_are_near_those_of_float32_on_the_cpu(self, cuda, case):
        half, wide = built(case, cuda, torch.bfloat16), built(case)
        wide.load_state_dict({name: value.float().cpu() for name, value in half.state_dict().items()})
        bound = HALF_OF.get(case, HALF)
        for found, wanted in zip(trained_once(half, tokens())[:2], trained_once(wide, tokens())[:2], strict=True):
            assert_near(found, wanted, bound)

    @torch.no_grad()
    def test_steps_give_what_the_whole_sequence_gives(self, cuda, case):
        if "capacity_factor" in CASES[case]:
            pytest.skip("a capacity limits whole sequences only")
        model, ids = built(case, cuda), tokens(seq_len=140)[:, :-1].to(cuda)
        whole, state, steps = model.logits(ids), model.initial_state(len(ids)), []
        for token in ids.T:
            logits, state = model.step(token, state)
            steps.append(logits)
        assert all(leaf.device.type == cuda.type for leaf in tree_leaves(state) if torch.is_tensor(leaf))
        assert distance(torch.stack(steps, 1), whole) <= GRADIENTS

    def test_recomputing_the_core_gives_the_same_gradients(self, cuda, case):
        results = []
        for recompute in (False, True):
            model = built(case, cuda)
            for module in model.modules():
                if hasattr(module, "recompute_core"):
                    module.recompute_core = recompute
            results.append(trained_once(model, tokens())[1])
        assert_near(results[1], results[0], 1e-4)

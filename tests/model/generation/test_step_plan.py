"""Steps that are prepared once, against the steps of the modules."""

from functools import partial

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.model.config import ModelConfig
from hybridtron.model.generation.batch_state import BatchState
from hybridtron.model.generation.step_plan import MOST_ROWS, plan_layer_steps, plan_steps
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from tests.mixers.test_contract import CASES, WIDTH, assert_near, built, held, noisy

TOKENS = 70  # caches grow at 64


def tokens(batch, count=TOKENS):
    return torch.randint(64, (batch, count), generator=torch.Generator().manual_seed(0))


def plain_steps(model, ids):
    """Return the logits after each token [s, b, v], and the state."""
    logits, state = [], model.initial_state(len(ids))
    for column in ids.t():
        after, state = model.step(column, state)
        logits.append(after)
    return torch.stack(logits), state


def planned_steps(model, ids):
    """As `plain_steps`, and the kernels that the steps called."""
    state, logits = BatchState(model, len(ids)), []
    for column in ids.t():
        logits.append(state.advance(column.unsqueeze(1), [1] * len(ids)))
    calls = [call for layer in state._plan.layers for call in layer.calls]
    return torch.stack(logits), state.state, calls


def hybrid(**keys):
    config = ModelConfig.model_validate(
        {
            "hidden_size": WIDTH, "vocab_size": 64, "init_std": 0.2, "pattern": "a m f s m a r",
            "blocks": {
                "a": CASES["attention"], "m": CASES["mamba2"], "f": CASES["swiglu"],
                "s": CASES["sliding attention"], "r": CASES["mlp"] | {"activation": "relu2", "norm_position": "post"},
            },
            **keys,
        }
    )  # fmt: skip
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    return noisy(model)


@pytest.mark.parametrize("primitive", CASES)
@torch.no_grad()
def test_planned_steps_give_the_logits_and_the_state_of_steps(primitive):
    model, ids = noisy(built(primitive)), tokens(3)
    plain, state = plain_steps(model, ids)
    planned, planned_state, _ = planned_steps(model, ids)
    assert_near(planned, plain)
    for one, other in zip(held(planned_state), held(state), strict=True):
        assert_near(one, other)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"tie_embeddings": True, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0},
        {"zero_centered_norms": True},
    ],
)
@torch.no_grad()
def test_models_whose_layers_all_have_kernels_call_nothing_else(keys):
    model, ids = hybrid(**keys), tokens(2, 20)
    planned, _, calls = planned_steps(model, ids)
    assert_near(planned, plain_steps(model, ids)[0], 2e-5)
    assert all(isinstance(call, partial) for call in calls)


@torch.no_grad()
def test_larger_batches_multiply_in_torch():
    model, ids = hybrid(), tokens(MOST_ROWS + 1, 20)
    assert_near(planned_steps(model, ids)[0], plain_steps(model, ids)[0], 2e-5)


@torch.no_grad()
def test_weights_may_change_between_steps():
    """In place, as by an optimizer or load_state_dict, or by other tensors or parameters in their place."""
    model, ids = hybrid(), tokens(2, 16)
    state, other = BatchState(model, 2, room=20), model.initial_state(2)
    plans = {}
    for t, column in enumerate(ids.t()):
        if t == 4:
            model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()})
        if t == 8:
            for parameter in model.parameters():
                parameter.data = parameter.data * 1.1
        if t == 12:
            model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()}, assign=True)
        logits, other = model.step(column, other)
        assert_near(state.advance(column.unsqueeze(1), [1, 1]), logits, 2e-5)
        plans[id(state._plan)] = state._plan
    assert len(plans) == 3


@torch.no_grad()
def test_hooks_of_modules_see_every_step():
    """No plan is made past them, since it calls no module."""
    model, seen = hybrid(), []
    hook = model.final_norm.register_forward_hook(lambda module, given, out: seen.append(out))
    state = BatchState(model, 2)
    for column in tokens(2, 3).t():
        state.advance(column.unsqueeze(1), [1, 1])
    assert len(seen) == 3
    hook.remove()
    assert plan_steps(model, model.initial_state(2), 2)


@torch.no_grad()
def test_there_is_no_plan_for_other_numbers_or_without_kernels(monkeypatch):
    model = hybrid()
    assert plan_steps(model, model.initial_state(2), 2)
    half = hybrid().bfloat16()
    assert plan_steps(half, half.initial_state(2), 2) is None
    monkeypatch.setattr("hybridtron.model.generation.step_plan.load", lambda: (None, "switched off"))
    assert plan_steps(model, model.initial_state(2), 2) is None


@torch.no_grad()
def test_one_layer_can_be_planned_by_itself():
    model = hybrid()
    for layer in model.layer_list:
        x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
        stream, state = layer.step(model.begin(x), layer.mixer.initial_state(2))
        plan = plan_layer_steps(layer, layer.mixer.initial_state(2), stepped := x.clone())
        for call in plan.calls:
            call()
        assert_near(stepped, stream.states[0])
        for one, other in zip(held(plan.state()), held(state), strict=True):
            assert_near(one, other)

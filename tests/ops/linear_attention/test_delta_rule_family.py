"""The gated delta rule with decays by channel, and with another key that reads what is corrected."""

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops import dispatch
from hybridtron.ops.device import choosing_for
from hybridtron.ops.flops import gated_delta_rule_flops
from hybridtron.ops.linear_attention.delta_rule import (
    gated_delta_rule,
    gated_delta_rule_reference,
    gated_delta_rule_step,
)
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops
from tests.ops.linear_attention.test_delta_rule import arguments as with_one_decay

MEMBERS = {  # whether decays are by channel, whether a key of its own reads, and whether before the decay
    "kda": (True, False, False),
    "gdn2": (True, True, False),
    "comba": (False, True, True),
}


def arguments(seq_len, member="kda", groups=2, heads=4, dtype=torch.float32, decay=1.0, **sizes):
    """q, k, v, g, beta, and a shorter key where the member reads by one of its own."""
    by_channel, reads, _ = MEMBERS[member]
    q, k, v, g, beta = with_one_decay(seq_len, groups, heads, dtype, decay=decay, **sizes)
    if by_channel:
        g = (decay * F.logsigmoid(torch.randn(*g.shape, q.shape[-1]) + 3)).requires_grad_()
    read_key = (0.9 * F.normalize(k + torch.randn_like(k), dim=-1)).detach().requires_grad_()
    return (q, k, v, g, beta, read_key)[: 6 if reads else 5]


def chunked(member, chunk_size=64):
    return lambda q, k, v, g, beta, *key: gated_delta_rule(q, k, v, g, beta, chunk_size, *key, *_before(member, key))


def recurrence(member):
    return lambda q, k, v, g, beta, *key: gated_delta_rule_reference(q, k, v, g, beta, *key, *_before(member, key))


def _before(member, key):
    return (MEMBERS[member][2],) if key else ()


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len, member):
    assert_matches(chunked(member), recurrence(member), arguments(seq_len, member), 3e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 16, 256])
def test_the_chunk_size_changes_no_result(chunk_size):
    inputs = arguments(70, groups=3, heads=3)
    assert_matches(chunked("kda", chunk_size), recurrence("kda"), inputs, 3e-5)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(("share", "strong"), [(1.0, -20.0), (0.5, -20.0), (0.1, -1e4)])
def test_strong_decays_overflow_nothing_and_leave_the_others_exact(member, share, strong):
    """exp(-c) of a whole chunk would be e^1280."""
    q, k, v, g, *rest = arguments(200, member)
    g = torch.where(torch.rand(g.shape) < share, strong, g.detach() / 50).requires_grad_()
    assert_matches(chunked(member), recurrence(member), (q, k, v, g, *rest), 1e-4)


@pytest.mark.parametrize("member", MEMBERS)
def test_strengths_up_to_two_with_keys_that_are_nearly_alike(member):
    q, k, v, g, beta, *key = arguments(130, member, decay=0.0, largest=2.0)
    k, *key = (F.normalize(t.detach() * 0.1 + 1, dim=-1).requires_grad_() for t in (k, *key))
    assert_matches(chunked(member), recurrence(member), (q, k, v, g, beta, *key), 2e-4)


@pytest.mark.parametrize("member", MEMBERS)
def test_bfloat16(member):
    assert_matches(chunked(member), recurrence(member), arguments(300, member, dtype=torch.bfloat16), 1e-2)


def test_equal_decays_of_all_channels_are_one_decay_per_head():
    q, k, v, g, beta = (tensor.detach() for tensor in with_one_decay(150))
    by_channel = gated_delta_rule(q, k, v, g.unsqueeze(-1).expand(-1, -1, -1, 6), beta, 64)
    torch.testing.assert_close(by_channel, gated_delta_rule(q, k, v, g, beta, 64))


def test_causal():
    q, k, v, g, beta, key = (tensor.detach() for tensor in arguments(150, "gdn2", 4, 4))
    assert_causal(lambda t: chunked("gdn2")(q, F.normalize(k + t.sum(-1, keepdim=True), dim=-1), t, g, beta, key), v)


@pytest.mark.parametrize("member", MEMBERS)
def test_steps_reproduce_the_sequence(member):
    inputs = [tensor.detach() for tensor in arguments(70, member)]
    before, state, outputs = _before(member, inputs[5:]), torch.zeros(2, 4, 6, 8), []
    for t in range(70):
        y, state = gated_delta_rule_step(state, *(tensor[:, t] for tensor in inputs), *before)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), chunked(member, 16)(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("member", ["gdn2", "comba"])
@pytest.mark.parametrize("seq_len", [1, 2, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len, member):
    inputs = arguments(seq_len, member, batch=1)
    forward, backward = count_flops(lambda: chunked(member)(*inputs))
    assert forward == gated_delta_rule_flops(seq_len, 2, 4, 6, 8, 64, MEMBERS[member][0])
    assert backward == 2 * forward


@pytest.mark.parametrize("member", ["gdn2", "comba"])
def test_gradients_in_float64(member):
    inputs = arguments(7, member, 1, 2, batch=1, key_dim=2, head_dim=2)
    assert torch.autograd.gradcheck(
        chunked(member, 4), [tensor.detach().double().requires_grad_() for tensor in inputs]
    )


@pytest.mark.parametrize("member", ["gdn2", "comba"])
def test_vmap(member):
    def op(q, k, v, g, beta, key):
        key = 0.9 * F.normalize(key, dim=-1)
        return chunked(member, 8)(q, F.normalize(k, dim=-1), v, -F.softplus(g), beta.sigmoid(), key)

    assert_vmaps(op, arguments(20, member))


@pytest.mark.parametrize("member", MEMBERS)
def test_kernels_of_one_decay_per_head_leave_it_to_pytorch(member):
    inputs = [tensor.detach().to("meta") for tensor in arguments(8, member)]
    with choosing_for("cuda"):
        names = {each.function: each.name for each in dispatch.OPERATIONS["gated_delta_rule"].implementations}
        assert names[dispatch.select("gated_delta_rule", *inputs)] == "PyTorch, in chunks"
        assert names[dispatch.select("gated_delta_rule", *inputs[:3], inputs[4], inputs[4])] == "Triton"

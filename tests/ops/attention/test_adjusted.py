"""Attention whose scores are capped or decay with the forget gates between key and query."""

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.attention import tiles
from hybridtron.ops.attention.softmax import _plain_attention, _tiled_attention, attention, attention_reference
from hybridtron.ops.flops import attention_flops
from tests.ops.compare import (
    LENGTHS,
    assert_causal,
    assert_matches,
    assert_vmaps,
    count_flops,
    leaf,
    saved_bytes,
    token_major,
)

pytestmark = pytest.mark.usefixtures("form")

OPTIONS = {
    "cap": {"softcap": 2.0},
    "decays": {"decays": True},
    "both, sinks and a window": {"softcap": 2.0, "decays": True, "sinks": True, "window": 100},
}


def arguments(seq_len, heads=4, kv=2, dtype=torch.float32, batch=2):
    """q, k, v, sinks, sums of log forget gates."""
    q = token_major(batch, seq_len, heads, 8, dtype=dtype)
    k, v = (token_major(batch, seq_len, kv, size, dtype=dtype) for size in (8, 6))
    sums = F.logsigmoid(torch.randn(batch, seq_len, heads, dtype=torch.float64)).cumsum(1)
    return q, k, v, leaf(heads), sums.requires_grad_()


def op_of(options, function=attention):
    """The function of those arguments that the options use, and which these are."""
    used = [index for index, name in enumerate(("q", "k", "v", "sinks", "decays")) if index < 3 or options.get(name)]

    def op(*given):
        q, k, v, *rest = given
        sinks = rest.pop(0) if options.get("sinks") else None
        decays = rest.pop(0) if options.get("decays") else None
        return function(q, k, v, options.get("window"), 0.3, sinks, options.get("softcap"), decays)

    return op, lambda inputs: [inputs[index] for index in used]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_formula(seq_len, name):
    op, used = op_of(OPTIONS[name])
    reference, _ = op_of(OPTIONS[name], attention_reference)
    assert_matches(op, reference, used(arguments(seq_len)), 3e-5)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 77), (70, 190)])
def test_fewer_queries_than_keys_are_the_last_ones(num_queries, num_keys, name):
    op, used = op_of(OPTIONS[name])
    reference, _ = op_of(OPTIONS[name], attention_reference)
    q, *rest = used(arguments(num_keys))
    assert_matches(op, reference, (q[:, -num_queries:], *rest), 3e-5)


@pytest.mark.parametrize("form", ["native"], indirect=True)
@pytest.mark.parametrize("scores", [1, 1 << 14])
@pytest.mark.parametrize("name", [*OPTIONS, "none", "sinks"])
def test_tiles_of_any_size(monkeypatch, name, scores):
    monkeypatch.setattr(tiles, "_SCORES", scores)
    options = OPTIONS.get(name, {name: True})
    op, used = op_of(options, _tiled_attention)
    reference, _ = op_of(options, attention_reference)
    assert_matches(op, reference, used(arguments(300)), 3e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_plain_form_gives_the_same(name):
    op, used = op_of(OPTIONS[name], _plain_attention)
    reference, _ = op_of(OPTIONS[name], attention_reference)
    assert_matches(op, reference, used(arguments(150)), 3e-5)


def test_forgetting_everything_leaves_a_token_its_own_value():
    q, k, v, _, _ = arguments(150, kv=4)
    sums = torch.arange(0, -150, -1).double().mul(1e3).view(1, -1, 1).expand(2, -1, 4)
    torch.testing.assert_close(attention(q, k, v, decays=sums), v)


@pytest.mark.parametrize("name", OPTIONS)
def test_causal(name):
    op, used = op_of(OPTIONS[name])
    q, k, v, *rest = (tensor.detach() for tensor in used(arguments(150)))
    assert_causal(lambda t: op(q, k + t.mean(-1, keepdim=True), t, *rest), v)


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16(name):
    op, used = op_of(OPTIONS[name])
    reference, _ = op_of(OPTIONS[name], attention_reference)
    assert_matches(op, reference, used(arguments(150, dtype=torch.bfloat16)), 2e-2)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_in_float64(name):
    op, used = op_of(OPTIONS[name])
    inputs = [leaf(1, 5, heads, 4, dtype=torch.float64) for heads in (2, 1, 1)]
    inputs += [leaf(2, dtype=torch.float64), leaf(1, 5, 2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(op, used(inputs))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seq_len", [1, 64, 300])
def test_flops_are_those_executed(seq_len, name):
    """The backward pass computes the scores again, and those of the plain form the outputs as well."""
    op, used = op_of(OPTIONS[name])
    q, k, _, *rest = arguments(seq_len, batch=1)
    forward, backward = count_flops(lambda: op(*used((q, k, leaf(1, seq_len, 2, 8), *rest))))
    assert forward == attention_flops(seq_len, 4, 8, OPTIONS[name].get("window"))
    assert backward in (2.5 * forward, 3 * forward)


def test_keeps_for_backward_what_grows_with_the_length():
    q, k, v, _, decays = arguments(4096, heads=1, kv=1, batch=1)
    inputs = q.numel() + k.numel() + v.numel()
    assert saved_bytes(lambda: attention(q, k, v, None, 1.0, None, 3.0, decays)) < 4 * 20 * inputs


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", OPTIONS)
def test_vmap(name):
    op, used = op_of(OPTIONS[name])
    assert_vmaps(op, used(arguments(20)))

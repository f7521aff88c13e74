import pytest
import torch

from hybridtron.mixers.attention.rotary_scaling import LinearScaling, Llama3Scaling, YarnScaling
from hybridtron.ops.attention.rotary import apply_rotary, rotary_reference, rotary_tables
from tests.ops.compare import LENGTHS, assert_matches, assert_vmaps, leaf, token_major

pytestmark = pytest.mark.usefixtures("form")


@pytest.mark.parametrize("rotary_dim", [4, 12])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_its_formula(seq_len, rotary_dim):
    tables = rotary_tables(seq_len, rotary_dim)
    assert_matches(
        lambda x: apply_rotary(x, *tables),
        lambda x: rotary_reference(x, *tables),
        [token_major(2, seq_len, 3, 12)],
        1e-6,
    )


def test_equals_a_rotation_of_the_complex_plane():
    x, (cos, sin) = torch.randn(1, 9, 2, 8), rotary_tables(9, 8, base=100.0)
    angles = torch.arange(9.0).unsqueeze(1) * 100.0 ** (-torch.arange(4.0) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(9, 4), angles).unsqueeze(1)
    torch.testing.assert_close(apply_rotary(x, cos, sin), torch.cat([turned.real, turned.imag], -1))


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 1, 8).expand(1, 40, 1, 8), torch.randn(1, 1, 1, 8).expand(1, 40, 1, 8)
    q, k = (apply_rotary(t, *rotary_tables(40, 8, dtype=torch.float32))[0, :, 0] for t in (q, k))
    scores = q @ k.T
    torch.testing.assert_close(scores[5:, 5:], scores[:-5, :-5], rtol=1e-4, atol=1e-4)


def test_offset_continues_the_table():
    for whole, tail in zip(rotary_tables(20, 8), rotary_tables(5, 8, offset=15), strict=True):
        torch.testing.assert_close(whole[15:], tail)


def test_bfloat16():
    tables = rotary_tables(300, 16)
    x = leaf(2, 300, 2, 16, dtype=torch.bfloat16)
    assert_matches(lambda x: apply_rotary(x, *tables), lambda x: rotary_reference(x, *tables), [x], 8e-3)


def test_gradients_in_float64():
    tables = rotary_tables(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, *tables), leaf(2, 5, 2, 6, dtype=torch.float64))


def test_vmap():
    tables = rotary_tables(7, 4)
    assert_vmaps(lambda x: apply_rotary(x, *tables), [leaf(2, 7, 2, 6)])


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 32.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("base", [100.0, 500000.0])
@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (LinearScaling, {"factor": 3.0}),
        (Llama3Scaling, LLAMA3),
        (YarnScaling, YARN),
        (YarnScaling, {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}),
        (YarnScaling, {**YARN, "beta_fast": 1.0, "attention_factor": 2.0}),
    ],
)
def test_stretched_frequencies_are_those_of_transformers(kind, keys, base):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    name = kind.model_fields["type"].annotation.__args__[0]
    theirs = LlamaConfig(
        hidden_size=96, num_attention_heads=2, rope_parameters={"rope_type": name, "rope_theta": base, **keys}
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS[name](theirs, "cpu")
    scaling = kind(type=name, **keys)
    cos, sin = rotary_tables(2, 48, base, torch.float64, scaling=scaling)
    torch.testing.assert_close(torch.atan2(sin[1], cos[1]), expected.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.hypot(cos, sin), torch.full_like(cos, magnitude))

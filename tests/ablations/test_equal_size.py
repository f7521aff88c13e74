"""Cells are made as large as their reference, or refused with the nearest sizes."""

from __future__ import annotations

import pytest

from hybridtron.ablations.equal_size import measure
from hybridtron.errors import UserError
from tests.ablations.studies import LAYERS, plan

FFN = "model.blocks.mlp.ffn_hidden_size"
SHORTER = {"type": "variants", "variants": {"whole": [], "short": ["model.pattern=mamba mlp"]}}


@pytest.mark.parametrize("of", ["parameters", "non_embedding", "flops"])
def test_a_key_is_adjusted_to_the_size_of_the_reference(tiny, of):
    made = plan(tiny, axes={"layers": SHORTER}, equal={"key": FFN, "of": of})
    whole, short = (measure(cell.config, of) for cell in made.cells)
    assert made.cells[0].adjusted is None
    assert made.cells[1].adjusted > 64
    assert short == pytest.approx(whole, rel=0.01)


def test_state_is_made_equal_by_what_sets_it(tiny):
    small = {"type": "variants", "variants": {"all": [], "mamba": ["model.pattern=mamba mlp"]}}
    equal = {"key": "model.blocks.mamba.state_dim", "of": "state", "tolerance": 0.02}
    made = plan(tiny, axes={"layers": small}, equal=equal)
    whole, without = (measure(cell.config, "state") for cell in made.cells)
    assert without == pytest.approx(whole, rel=0.02)
    assert made.cells[1].adjusted == 24  # 8, and attention's 32 tokens x 2 x 16 channels, over mamba's 64


def test_values_that_a_config_does_not_allow_are_passed_over(tiny):
    equal = {"key": "model.hidden_size", "of": "parameters", "tolerance": 0.25}
    made = plan(tiny, axes={"layers": SHORTER}, equal=equal)
    width = made.cells[1].config.model.hidden_size
    assert width > 32
    assert width % 8 == 0  # four heads with an even number of channels, and mamba's of 16


def test_no_difference_changes_nothing(tiny):
    rates = {"type": "grid", "key": "optimizer.lr", "values": [3e-3, 1e-3]}
    made = plan(tiny, axes={"lr": rates}, equal={"key": FFN})
    assert [cell.adjusted for cell in made.cells] == [None, None]


def test_the_reference_shares_axes_that_are_named(tiny):
    width = {"type": "grid", "key": "model.hidden_size", "values": [32, 64]}
    equal = {"key": FFN, "of": "parameters", "within": ["width"], "tolerance": 0.02}
    made = plan(tiny, axes={"layers": LAYERS, "width": width}, equal=equal)
    sizes = {cell.name: cell.numbers["parameters"] for cell in made.cells}
    for one in (32, 64):
        hybrid, attention = sizes[f"layers-hybrid_width-{one}"], sizes[f"layers-attention_width-{one}"]
        assert attention == pytest.approx(hybrid, rel=0.02)
    assert sizes["layers-hybrid_width-64"] > 1.5 * sizes["layers-hybrid_width-32"]


@pytest.mark.parametrize(
    ("equal", "message"),
    [
        ({"key": FFN, "multiple_of": 500}, r"no value comes within 0.01 of the .* 500 gives .*%.*expected a larger"),
        ({"key": "train.steps"}, "no value comes within"),
        ({"key": "optimizer.lr"}, "equal.key = optimizer.lr: holds 0.003; expected a key that holds a whole number"),
    ],
)
def test_what_cannot_be_made_equal_is_refused_with_the_reason(tiny, equal, message):
    with pytest.raises(UserError, match=f"^cell layers-(short|whole): .*{message}"):
        plan(tiny, axes={"layers": SHORTER}, equal=equal)

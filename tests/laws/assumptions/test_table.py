"""Runs that keep to what their law assumes are told of nothing."""

import pytest

from tests.laws import planted, planted_formulas
from tests.laws.assumptions.told import read, told

PLANTED = {
    "parametric": planted.parametric_runs(1, 0.003),
    "isoflop": planted.isoflop_runs(1, 0.003),
    "overtraining": planted.overtraining_runs(1, 0.003),
    "state-optimal": planted.state_runs(1, 0.003),
    "downstream": planted.downstream_runs(1, 0.003),
    "proxy": planted.proxy_runs(1, -0.8, 20),
    "depth-width": planted.depth_width_runs(1, 0.003),
    "learning-rate": planted.learning_rate_runs(1, 0.003),
} | {law: formula.runs(1, 0.003) for law, formula in planted_formulas.LAWS.items()}


@pytest.mark.parametrize("law", PLANTED)
def test_planted_runs_of_every_law(law):
    assert told(law, PLANTED[law]) == []


@pytest.mark.parametrize(
    ("law", "name", "reading", "group"),
    [
        ("parametric", "chinchilla_fig4.csv", {"where": [("in_fit", "1")]}, None),
        ("isoflop", "chinchilla_isoflop.csv", {}, None),
        ("isoflop", "porian_isoflop.csv", {"where": [("experiment", "1_kaplan_repro")]}, None),
        ("overtraining", "gadre_overtraining.csv", {"columns": {"loss": "loss_c4_val"}}, None),
        ("state-optimal", "gemstones_state_optimal.csv", {}, None),
        ("downstream", "gadre_overtraining.csv", {"columns": {"loss": "loss_c4_val", "error": "err_avg17"}}, None),
        ("proxy", "mad_paper_fig1_digitised.csv", {"columns": {"ppl": "ppl_compute_optimal_pile"}}, None),
        ("depth-width", "gemstones.csv", {}, "run"),
        ("learning-rate", "learning_rate_sweep.csv", {}, None),
        ("data-repetition", "data_repetition.csv", {}, None),
        ("fine-grained", "fine_grained_synthetic.csv", {}, None),
        ("precision", "precision_synthetic.csv", {}, None),
    ],
)
def test_published_examples_are_told_of_nothing(law, name, reading, group):
    assert told(law, read(law, name, group, **reading), group=group) == []

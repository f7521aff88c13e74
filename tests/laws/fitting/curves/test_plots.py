"""The plot of a formula across one of its columns: lines of the law, and runs moved to them."""

import numpy as np
import pytest

from hybridtron.laws import fit
from hybridtron.laws.families.moe.routed_moe import loss
from tests.laws.planted_formulas import LAWS as PLANTED

ACROSS = {
    "hybrid-ratio": ("ratio", "n_params"),
    "data-repetition": ("tokens", "unique_tokens"),
    "routed-moe": ("experts", "n_params"),
    "sparse": ("n_params", "active_params"),
    "optimal-sparsity": ("active_params", "n_params"),
    "fine-grained": ("granularity", "n_params"),
    "precision": ("weight_bits", "n_params"),
}


def panel(law, noise, bootstrap=0, n=40):
    found = fit(law, PLANTED[law].runs(81, noise, n), bootstrap=bootstrap, holdout=0)
    series = [one for one in found.curves if one.panel.startswith("loss against")]
    return [one for one in series if one.kind == "points"], [one for one in series if one.kind == "line"]


@pytest.mark.parametrize(("law", "columns"), ACROSS.items())
def test_every_run_without_noise_lies_on_the_line_of_its_level(law, columns):
    points, lines = panel(law, 0.0)
    assert sum(len(one.x) for one in points) == 40
    assert {one.panel for one in points} == {f"loss against {columns[0]}"}
    for own, line in zip(points, lines, strict=True):
        assert own.label == line.label
        assert own.label.startswith(f"{columns[1]} = ")
        near = np.log if line.x_log else np.asarray
        assert own.y == pytest.approx(np.interp(near(own.x), near(line.x), line.y), rel=2e-3)


def test_a_share_of_zero_has_a_straight_axis():
    points, _ = panel("hybrid-ratio", 0.0)
    assert not points[0].x_log
    assert points[0].x.min() == 0


def test_a_run_stands_as_far_above_the_line_as_above_the_law():
    one = PLANTED["routed-moe"]
    runs = one.runs(82, 0.0, 60)
    noisy = runs.with_column("loss", runs["loss"] * np.where(np.arange(60) == 7, 1.05, 1.0))
    found = fit("routed-moe", noisy, delta=1e-4, bootstrap=0, holdout=0)
    points = [each for each in found.curves if each.panel == "loss against experts" and each.kind == "points"]
    sizes = np.quantile(runs["n_params"], (0.1, 0.5, 0.9), method="nearest")
    above = [
        each.y / loss(n_params=size, experts=each.x, **one.truth) for each, size in zip(points, sizes, strict=True)
    ]
    assert np.sort(np.concatenate(above))[-2:] == pytest.approx([1.0, 1.05], rel=2e-3)


def test_the_lines_carry_their_intervals_and_the_note_says_what_was_moved():
    points, lines = panel("fine-grained", 0.003, bootstrap=100)
    assert all((one.low <= one.high).all() and ((one.low < one.y) & (one.y < one.high)).mean() > 0.9 for one in lines)
    assert points[0].note.startswith("runs moved to the lines by the law (tokens ")
    assert not any(one.note for one in (*points[1:], *lines))

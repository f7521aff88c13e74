"""Plots: one image per panel, on axes that a reader can read."""

import io

import numpy as np
import pytest

from hybridtron.laws.report.plots import bounds_of_lines, draw
from hybridtron.laws.result import Series
from hybridtron.reporting.pictures import log_ticks


def series(panel, label="runs", kind="points", **more):
    x = np.geomspace(1e18, 1e21, 20)
    return Series(panel, label, kind, x, 2 + (x / 1e18) ** -0.1, "FLOPs", "loss", **more)


def test_each_panel_is_one_png_named_after_it():
    images = draw([series("Loss against compute"), series("Loss against compute", "fit", "line"), series("N_opt")])
    assert list(images) == ["1-loss-against-compute.png", "2-n-opt.png"]
    assert all(png.startswith(b"\x89PNG") for png in images.values())


def test_images_are_small_and_the_same_every_time():
    first, second = (draw([series("p", f"{i}", kind) for i in range(12) for kind in ("points", "line")]) for _ in "ab")
    assert first == second
    assert len(first["1-p.png"]) < 150_000


def test_error_bars_and_bands_are_drawn():
    y = series("p").y
    plain, barred = draw([series("p")]), draw([series("p", low=y - 0.1, high=y + 0.1)])
    assert plain["1-p.png"] != barred["1-p.png"]


def test_names_are_drawn_where_there_are_few_points_and_a_note_above_them():
    few, many = np.arange(1.0, 13), np.arange(1.0, 14)
    for x, drawn in ((few, True), (many, False)):
        plain, named = (
            draw([Series("p", "runs", "points", x, x, "N", "loss", names=names)])
            for names in ((), tuple(f"run {i}" for i in range(len(x))))
        )
        assert (plain != named) == drawn
    assert draw([series("p", note="not evidence")]) != draw([series("p")])


def test_a_few_stray_points_do_not_flatten_the_lines():
    line = Series("p", "fit", "line", np.arange(1.0, 41), np.linspace(3, 2, 40), "N", "loss")
    points = Series("p", "runs", "points", line.x, line.y + np.where(line.x == 7, 9.0, 0.0), "N", "loss")
    low, high = bounds_of_lines([line, points])
    assert 1.5 < low < 2 < 3 < high < 4


def test_all_points_are_shown_where_many_lie_far_from_the_line():
    line = Series("p", "fit", "line", np.arange(1.0, 6), np.linspace(3, 2.9, 5), "N", "loss")
    points = Series("p", "runs", "points", line.x, np.array([5.0, 3, 1, 3, 4]), "N", "loss")
    assert bounds_of_lines([line, points]) is None
    assert bounds_of_lines([points]) is None


def test_an_image_has_the_width_of_the_page():
    from matplotlib import image

    assert image.imread(io.BytesIO(draw([series("p")])["1-p.png"])).shape[1] >= 1000


@pytest.mark.parametrize("bounds", [(1e18, 1e22), (9e7, 2e8), (2.1, 3.4), (1, 1e30), (0.98, 1.02), (5.0, 640.0)])
def test_log_axes_have_a_handful_of_ticks_inside_their_bounds(bounds):
    ticks = log_ticks(*bounds)
    assert 2 <= len(ticks) <= 9
    assert all(bounds[0] <= tick <= bounds[1] for tick in ticks)


def test_bounds_that_have_no_logarithm_give_no_ticks():
    assert log_ticks(0, 10) == log_ticks(3, 3) == []

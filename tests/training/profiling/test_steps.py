"""Which steps are profiled."""

import pytest

from hybridtron.errors import UserError
from hybridtron.training.profiling.steps import ProfiledSteps, profiled_steps


@pytest.mark.parametrize(
    ("done", "steps", "expected"),
    [
        (0, 100, (10, 12)),
        (0, 12, (10, 12)),
        (0, 5, (3, 5)),
        (0, 2, (1, 2)),
        (0, 1, (1, 1)),
        (50, 100, (60, 62)),
        (98, 100, (99, 100)),
        (99, 100, (100, 100)),
    ],
)
def test_three_steps_after_nine_or_the_last_ones(done, steps, expected):
    assert profiled_steps(None, done, steps) == ProfiledSteps(*expected)


def test_steps_that_are_asked_for():
    assert profiled_steps("4-6", 3, 6) == ProfiledSteps(4, 6)
    assert profiled_steps("4", 0, 6) == ProfiledSteps(4, 4)


@pytest.mark.parametrize("text", ["", "a", "0-3", "5-4", "1-", "-3", "1-2-3", "٣"])
def test_what_names_no_steps_is_refused(text):
    with pytest.raises(UserError, match=r"^profile_steps = .*: expected FIRST-LAST, such as 10-12"):
        profiled_steps(text, 0, 100)


@pytest.mark.parametrize("text", ["3-5", "3", "6-11"])
def test_steps_that_are_not_trained_are_refused(text):
    with pytest.raises(UserError, match=rf"^profile_steps = {text}: expected steps that are trained, from 4 to 10$"):
        profiled_steps(text, 3, 10)

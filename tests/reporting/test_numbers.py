import pytest

from hybridtron.reporting.numbers import duration, plural, short_number


@pytest.mark.parametrize(
    ("value", "text"),
    [(7e7, "70M"), (1.4e12, "1.4T"), (999.8e6, "1B"), (6e18, "6e18"), (2.5, "2.5"), (0.021, "0.021"), (2e-5, "2e-5")],
)
def test_numbers_are_written_as_readers_say_them(value, text):
    assert short_number(value) == text


def test_times_are_in_the_unit_that_suits_them():
    shown = [duration(seconds) for seconds in (0.0, 0.031, 12.3, 252, 11160)]
    assert shown == ["under 0.01 s", "0.031 s", "12 s", "4.2 min", "3.1 h"]


def test_a_count_has_its_noun_in_the_right_number():
    assert [plural(count, "pattern") for count in (1, 2, 0)] == ["1 pattern", "2 patterns", "0 patterns"]

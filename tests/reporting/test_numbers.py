import pytest

from hybridtron.reporting.numbers import short_number


@pytest.mark.parametrize(
    ("value", "text"),
    [(7e7, "70M"), (1.4e12, "1.4T"), (999.8e6, "1B"), (6e18, "6e18"), (2.5, "2.5"), (0.021, "0.021"), (2e-5, "2e-5")],
)
def test_numbers_are_written_as_readers_say_them(value, text):
    assert short_number(value) == text

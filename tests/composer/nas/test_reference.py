"""docs/search.md is the page that the schema gives."""

from pathlib import Path

from hybridtron.composer.nas.reference import page


def test_the_page_is_up_to_date():
    assert Path(__file__).parents[3].joinpath("docs/search.md").read_text() == page()

"""docs/launch_keys.md is the page that the schema gives."""

from hybridtron.launcher.reference import page
from tests.conftest import ROOT


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "launch_keys.md").read_text() == page()

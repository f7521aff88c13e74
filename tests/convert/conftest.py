"""What tests of conversions share: models of transformers with random values."""

from __future__ import annotations

import pytest

from tests.convert.families import FAMILIES, make_theirs


@pytest.fixture(scope="session")
def theirs(tmp_path_factory):
    """Return the models of the table, by the names of its rows."""
    return {name: make_theirs(name, tmp_path_factory.mktemp("theirs")) for name in FAMILIES}

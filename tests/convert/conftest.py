"""What tests of conversions share: models of transformers with random values."""

from __future__ import annotations

import pytest

from tests.convert.families import make_theirs


@pytest.fixture(scope="session")
def theirs(tmp_path_factory):
    """Return the models of the table, by the names of its rows; each is made when a test asks for it."""

    class Models(dict):
        def __missing__(self, name):
            self[name] = make_theirs(name, tmp_path_factory.mktemp("theirs"))
            return self[name]

    return Models()

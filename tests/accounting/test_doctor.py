"""What doctor looks for is what the package needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hybridtron.accounting.doctor import REQUIRED

ROOT = Path(__file__).parents[2]


def test_every_package_that_the_project_needs_is_looked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.match("[a-z0-9-]+", each)[0] for each in project["dependencies"]} == {*REQUIRED}

"""docs/ablation_keys.md is the page that the schema gives, and the example files are plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridtron.ablations.cells import make_plan
from hybridtron.ablations.config import AblationConfig
from hybridtron.ablations.reference import page
from hybridtron.config.load import load
from tests.conftest import ROOT


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/ablation_keys.md").read_text() == page()


@pytest.mark.parametrize("file", sorted((ROOT / "configs/ablations").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_is_a_plan(file: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = make_plan(load(file, (), AblationConfig))
    assert len(plan.runs) == len(plan.cells) * len(plan.config.seeds)

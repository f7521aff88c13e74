"""The `model` section: blocks that a file drops from its base."""

from pathlib import Path

import pytest
import yaml

from hybridtron.composer.evaluation.evaluators import make_evaluator
from hybridtron.composer.grow.kept_blocks import with_blocks_of
from hybridtron.config.load import load
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from tests.composer.small import MAD, config
from tests.conftest import ROOT

QUICKSTART = ROOT / "configs/runs/quickstart.yaml"


@pytest.fixture
def dropping(tmp_path) -> Path:
    """A config that drops the Mamba block of its base."""
    model = {"blocks": {"mamba": None}, "pattern": "2*(attn mlp)"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"base": str(QUICKSTART), "model": model}))
    return tmp_path / "run.yaml"


def test_a_block_that_is_null_is_dropped_from_the_base(dropping):
    assert list(load(QUICKSTART, [], RunConfig).model.blocks) == ["mamba", "attn", "mlp"]
    assert list(load(dropping, [], RunConfig).model.blocks) == ["attn", "mlp"]
    override = ["model.blocks.mamba=null", "model.pattern=attn mlp"]
    assert list(load(QUICKSTART, override, RunConfig).model.blocks) == ["attn", "mlp"]


def test_a_pattern_cannot_name_a_block_that_was_dropped(dropping):
    with pytest.raises(UserError, match=r"unknown block 'mamba' .* expected one of attn, mlp"):
        load(dropping, ["model.pattern=mamba attn"], RunConfig)


def test_a_dropped_block_is_none_of_a_searchs_evaluator_or_of_blocks_that_are_kept(dropping, tmp_path):
    space = {"blocks": ["attn", "mamba"], "layers": 2}
    for evaluator in (
        {"type": "train", "run": str(dropping)},
        {**MAD, "blocks": {**MAD["blocks"], "mamba": None}},
    ):
        with pytest.raises(UserError, match=r"has no block 'mamba' of space\.blocks; expected one of attn, mlp"):
            make_evaluator(config(tmp_path / "s", space=space, evaluator=evaluator))
    target = load(QUICKSTART, ["model.hidden_size=384"], RunConfig).model
    assert list(with_blocks_of(dropping, target).blocks) == ["attn", "mlp"]

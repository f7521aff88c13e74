"""Patterns are counted, and made as large as a baseline where that is asked for."""

from __future__ import annotations

import json

import pytest

from hybridtron.composer.evaluation.evaluators import make_evaluator
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.run import run_search
from hybridtron.composer.report.summary import summary
from hybridtron.config.load import build
from hybridtron.errors import UserError
from tests.composer.small import MAD

EQUAL = {"pattern": "attn mlp mlp", "tolerance": 0.05}


def config(**changes) -> SearchConfig:
    mapping = {
        "name": "sizes",
        "evaluations": 8,
        "space": {"blocks": ["attn", "mlp"], "layers": 3},
        "evaluator": MAD,
        "engine": {"type": "exhaustive"},
    }
    return build({**mapping, **changes}, SearchConfig)


def test_without_equal_size_the_identity_is_as_it_was():
    evaluator = make_evaluator(config())
    assert "equal_size" not in evaluator.identity
    assert evaluator.sizes.sentence is None
    assert evaluator.sizes.width(("attn", "mlp", "mlp")) is None
    assert "equal_size" in make_evaluator(config(equal_size=EQUAL)).identity


def test_parameters_are_those_of_the_baseline():
    plain, equal = (make_evaluator(config(**more)).sizes for more in ({}, {"equal_size": EQUAL}))
    target = plain.parameters(("attn", "mlp", "mlp"))
    assert plain.parameters(("attn", "attn", "mlp")) != pytest.approx(target, rel=0.05)
    for layers in (("attn", "attn", "mlp"), ("mlp", "attn", "attn"), ("mlp", "mlp", "mlp"), ("attn", "mlp", "mlp")):
        assert equal.parameters(layers) == pytest.approx(target, rel=0.05)
    key, value = equal.width(("attn", "attn", "mlp"))
    assert (key, value != 16) == ("blocks.mlp.ffn_hidden_size", True)
    assert equal.width(("attn", "mlp", "mlp")) is None


def test_a_training_run_is_sized_by_its_own_config(tiny):
    run = {"type": "train", "run": str(tiny)}
    equal = {"pattern": "attn mlp mlp", "of": "flops", "tolerance": 0.01}
    sizes = make_evaluator(config(evaluator=run, equal_size=equal)).sizes
    assert sizes.width(("attn", "attn", "mlp"))[0] == "blocks.mlp.ffn_hidden_size"
    assert sizes.parameters(("attn", "attn", "mlp")) > 320 * 32


def test_a_run_that_begins_with_weights_is_refused(tiny):
    run = {"type": "train", "run": str(tiny), "overrides": ["train.init_from=other"]}
    with pytest.raises(UserError, match=r"evaluator.*has train\.init_from; expected none: every pattern is trained"):
        make_evaluator(config(evaluator=run))


def test_the_report_has_parameters_and_says_what_was_made_equal(tmp_path):
    """Attention alone has no fine width: it gets no score, and says why."""
    outcome, page = run_search(config(folder=str(tmp_path / "search"), equal_size=EQUAL))
    sentence = "Every pattern was given the parameters without embeddings of attn mlp mlp, "
    assert sentence in page.read_text()
    assert sentence in summary(outcome)
    assert "no value comes within 0.05 of the" in page.read_text()
    result = json.loads((tmp_path / "search" / "result.json").read_text())
    assert result["equal_size"].startswith(sentence)
    assert result["failed"] == 1
    target = outcome.search.evaluator.sizes.target
    assert [row["parameters"] for row in result["best"]] == pytest.approx([target] * 7, rel=0.05)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"equal_size": {"pattern": "attn mpl"}}, "equal_size: .*mpl"),
        ({"equal_size": EQUAL, "evaluator": {"type": "function"}}, "equal_size = .*: expected nothing with evaluator"),
    ],
)
def test_what_cannot_be_sized_is_refused(more, words):
    with pytest.raises(UserError, match=words):
        make_evaluator(config(**more))

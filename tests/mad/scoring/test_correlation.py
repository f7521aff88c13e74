"""From scores and losses to points, and what their correlation is worth."""

from pathlib import Path

import pytest

from hybridtron.errors import UserError
from hybridtron.mad import scores
from hybridtron.mad.checkpoints import _comparable
from hybridtron.mad.scoring.correlation import HeldOutLoss, Point, as_points, correlate, in_one_unit
from tests.mad.small import row


def points(scores, losses):
    return [Point(str(i), [], *pair) for i, pair in enumerate(zip(scores, losses, strict=True))]


def loss(**changes):
    about = {"checkpoint": Path("run", "step_1"), "loss": 2.0, "bits_per_byte": 1.1, "tokenizer": "a",
             "tokens": "x", "text": (3, 900), "seq_len": 32, "documents": "flow", "data": "valid"}  # fmt: skip
    return HeldOutLoss(**about | changes)


def test_five_models_are_evidence_with_an_exact_p(tmp_path):
    five = points([0.1, 0.3, 0.5, 0.7, 0.9], [3.0, 2.8, 2.9, 2.5, 2.0])
    found = correlate(five, tmp_path, "nats per token")
    assert found["parameters"]["spearman"] == pytest.approx(-0.9)
    assert found["parameters"]["p"] == pytest.approx(10 / 120)
    assert "exact permutation p" in " ".join(found["verdict"])
    assert not any("too few" in line for line in found["verdict"])
    assert (tmp_path / "correlation.png").read_bytes().startswith(b"\x89PNG")
    assert any("Not evidence" in line for line in correlate(five[:4], tmp_path, "nats per token")["verdict"])


def test_scores_that_rise_with_the_loss_order_the_wrong_way(tmp_path):
    wrong = points([0.1 * i for i in range(8)], [2.0 + 0.1 * i for i in range(8)])
    verdict = " ".join(correlate(wrong, tmp_path, "bits per byte")["verdict"])
    assert "orders them the wrong way" in verdict
    assert "validated" not in verdict


def test_two_points_in_the_wrong_order_do_not_read_as_success(tmp_path):
    facts, evidence = correlate(points([0.3, 0.4], [2.0, 2.1]), tmp_path, "nats per token")["verdict"]
    assert facts.endswith("over 2 points. The higher score has the higher loss: the wrong way.")
    assert evidence.startswith("Not evidence: 2 points are too few")


def test_one_model_has_no_correlation_and_leaves_no_picture(tmp_path):
    correlate(points([0.3, 0.4], [2.0, 2.1]), tmp_path, "nats per token")
    found = correlate(points([0.3], [2.0]), tmp_path, "nats per token", ["a was given twice."])
    assert found["verdict"] == [
        "No correlation: only one model is left; a correlation needs at least two", "a was given twice.",
    ]  # fmt: skip
    assert found["parameters"] is None
    assert not (tmp_path / "correlation.png").exists()


def test_checkpoints_of_one_proxy_are_one_point(tmp_path):
    """Six checkpoints of two runs that shrink to the same model, and one of another."""
    (one,), (other,) = scores([row(architecture="a")]), scores([row(fingerprint="g", architecture="b", test_micro=0.9)])
    checkpoints = [Path(run, f"step_{step:08d}") for run in ("r", "s") for step in (10, 2, 6)] + [Path("t", "step_1")]
    made, remarks = as_points([one] * 6 + [other], checkpoints, [3.0, 5.0, 4.0, 2.0, 5.0, 4.0, 1.0])
    assert [(point.name, point.score, point.loss) for point in made] == [("a", 0.5, 2.5), ("b", 0.9, 1.0)]
    assert "7 checkpoints are 2 different models" in remarks[0]
    found = correlate(made, tmp_path, "nats per token", remarks)
    assert "Not evidence: 2 points are too few" in " ".join(found["verdict"])


def test_losses_over_other_contexts_or_documents_are_named():
    messages = []
    assert _comparable([loss(), loss(loss=3.0)], messages.append)[0] == [2.0, 3.0]
    assert not messages
    _comparable([loss(), loss(seq_len=64)], messages.append)
    _comparable([loss(), loss(documents="isolate")], messages.append)
    assert messages == [
        "warning: losses at contexts of 32 and 64 tokens",
        "warning: losses with data.documents flow and isolate, which are means over different tokens",
    ]


def test_losses_are_compared_in_one_unit_and_on_one_text():
    assert in_one_unit([loss(), loss(loss=3.0)]) == ([2.0, 3.0], "nats per token")
    other = {"tokenizer": "b", "tokens": "y", "loss": 5.0, "bits_per_byte": 0.9}
    assert in_one_unit([loss(), loss(**other)]) == ([1.1, 0.9], "bits per byte")
    with pytest.raises(UserError, match=r"different held-out data .*expected the same, given as `data`"):
        in_one_unit([loss(), loss(tokens="y")])
    with pytest.raises(UserError, match="different held-out data"):
        in_one_unit([loss(), loss(**other, text=(3, 901))])
    with pytest.raises(UserError, match="tokenizers differ, and the bytes of valid are not known"):
        in_one_unit([loss(), loss(**other, text=None)])

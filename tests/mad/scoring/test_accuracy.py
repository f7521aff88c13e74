import pytest
import torch

from hybridtron.mad.scoring.accuracy import accuracy


def one(predictions, targets, classes):
    found = accuracy(torch.tensor([predictions]), torch.tensor(targets), classes)
    return found.micro.item(), found.macro.item()


def test_micro_counts_scored_positions():
    assert one([[1, 2, 3, 0]], [[1, -100, 0, 0]], 4)[0] == pytest.approx(2 / 3)


def test_macro_averages_over_the_classes_that_are_targets_or_predictions():
    """Class 0: 1 of 3 met. Class 1: 1 of 1. Class 2 was only predicted: 0. Class 3 is absent: not counted."""
    assert one([[0, 2, 2, 1]], [[0, 0, 0, 1]], 4)[1] == pytest.approx((1 / 3 + 1 + 0) / 3)


def test_macro_is_a_mean_over_batches_of_128_examples():
    targets = torch.zeros(130, 1, dtype=torch.long)
    predictions = torch.zeros(1, 130, 1, dtype=torch.long)
    predictions[0, 128:] = 1  # the second batch is wrong throughout
    found = accuracy(predictions, targets, 2)
    assert found.micro.item() == pytest.approx(128 / 130)
    assert found.macro.item() == pytest.approx((1.0 + 0.0) / 2)


def test_each_model_is_scored_by_itself():
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(5, (3, 7, 4), generator=generator)
    targets = torch.randint(5, (7, 4), generator=generator)
    targets[targets == 4] = -100
    together = accuracy(predictions, targets, 5)
    own = accuracy(predictions, targets.expand(3, 7, 4), 5)
    for i in range(3):
        alone = accuracy(predictions[i : i + 1], targets, 5)
        for found in (together, own):
            assert found.micro[i] == alone.micro[0]
            assert found.macro[i] == alone.macro[0]


def test_predictions_where_nothing_is_scored_do_not_count():
    assert one([[3, 0]], [[-100, 0]], 4) == (1.0, 1.0)

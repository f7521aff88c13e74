"""Cutting layers into pipeline stages."""

from itertools import combinations, pairwise

import pytest

from hybridtron.model.stage import balanced_cuts, cut, imbalance, stage_costs, stage_tensors
from hybridtron.model.tensors import model_tensors
from tests.training.runs import resolved_tiny


def dearest(costs, cuts, first=0, last=0):
    bounds = [0, *cuts, len(costs)]
    runs = [sum(costs[a:b]) for a, b in pairwise(bounds)]
    return max([runs[0] + first, *runs[1:-1], runs[-1] + last])


@pytest.mark.parametrize("costs", [[5, 1, 1, 1, 5, 2, 7], [1] * 7, [9, 1, 1, 1, 1, 1, 9], [0, 0, 3, 0, 1, 0, 2]])
@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("edges", [(0, 0), (1, 6)])
def test_no_other_cut_is_better(costs, count, edges):
    cuts = balanced_cuts(costs, count, *edges)
    assert len(cuts) == count - 1
    assert all(a < b for a, b in zip([0, *cuts], [*cuts, len(costs)], strict=True)), "an empty stage"
    best = min(dearest(costs, list(other), *edges) for other in combinations(range(1, len(costs)), count - 1))
    assert dearest(costs, cuts, *edges) == best


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match="2 layers cannot make 3 stages"):
        balanced_cuts([1, 1], 3)


def test_written_cuts_are_kept_and_ignored_by_a_single_stage():
    model = resolved_tiny(pattern="mamba | mlp attn ffn").model
    assert [(s.start, s.stop) for s in cut(model, 2, 32)] == [(0, 1), (1, 4)]
    assert [(s.start, s.stop) for s in cut(model, 1, 32)] == [(0, 4)]


def test_the_output_projection_counts():
    model = resolved_tiny(pattern="8*mlp", vocab_size=3200).model
    stages = cut(model, 2, 32)
    costs = stage_costs(model, stages, 32)
    assert stages[0].stop > 6
    assert sum(costs) == pytest.approx(sum(stage_costs(model, stages, 32, edges=False)) + 32 * 32 * (2 * 3200 + 1))
    assert imbalance([2, 2, 4], 3) == pytest.approx(0.5)


def test_of_interleaved_stages_a_process_has_the_sum():
    assert imbalance([4, 1, 1, 4], 2) == pytest.approx(0)
    assert imbalance([4, 1, 4, 1], 2) == pytest.approx(0.6)


@pytest.mark.parametrize("mtp", [None, {"pattern": "attn"}])
@pytest.mark.parametrize("tied", [False, True])
def test_stages_hold_every_parameter_once_but_for_an_embedding_that_both_ends_need(tied, mtp):
    model = resolved_tiny(tie_embeddings=tied, mtp=mtp).model
    specs = model_tensors(model)
    held = [name for stage in cut(model, 3, 32) for name in stage_tensors(model, specs, stage)]
    assert set(held) == set(specs)
    assert len(held) == len(specs) + (tied or mtp is not None)

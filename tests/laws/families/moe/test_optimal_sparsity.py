"""The optimal-sparsity law with its published coefficients."""

from __future__ import annotations

import numpy as np

from tests.laws.planted_formulas import LAWS as PLANTED


def test_the_published_law_of_sparsity_has_its_best_share_of_experts_rise_with_size():
    """2501.12370, at 1e20 FLOPs (6 active D): a larger model is best sparser, and no dense one is best."""
    law, best = PLANTED["optimal-sparsity"], []
    active_share = np.geomspace(0.02, 1, 200)
    for n_params in (5e8, 2e9, 8e9):
        active = n_params * active_share
        at = {"n_params": np.full(200, n_params), "active_params": active, "tokens": 1e20 / (6 * active)}
        best.append(active_share[np.argmin(law.true_loss(at))])
    assert 1 > best[0] > best[1] > best[2]

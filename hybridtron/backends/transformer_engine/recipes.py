"""The recipes of `precision.recipe` as Transformer Engine's, with the defaults that the emulation has too."""

from __future__ import annotations

import transformer_engine.pytorch as te
from transformer_engine.common import recipe as te_recipe


def make_recipe(name: str, history: int) -> te_recipe.Recipe:
    """Return Transformer Engine's recipe of this name; `history` is the length of amax histories of `delayed`."""
    if name == "tensorwise":
        return te_recipe.Float8CurrentScaling()
    if name == "delayed":
        return te_recipe.DelayedScaling(amax_history_len=history, amax_compute_algo="max")
    return {"blockwise": te_recipe.Float8BlockScaling, "mxfp8": te_recipe.MXFP8BlockScaling}[name]()


def unavailable(name: str) -> str | None:
    """Return why this GPU, or its CUDA, does not have a recipe, or None where it does."""
    check = {"blockwise": te.is_fp8_block_scaling_available, "mxfp8": te.is_mxfp8_available}
    available, reason = check.get(name, te.is_fp8_available)(return_reason=True)
    return None if available else reason

"""Parameters of mixtures of experts: all of them, or those that a token uses."""

from __future__ import annotations

import shlex

from hybridtron.laws.assumptions.names import named, numbers, reads
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.law import Law, Settings

ABOVE = 1.05  # total over active parameters beyond which a model is routed
_COUNT = ({"params"}, {"parameters"}, {"parameter"}, {"param"})
ACTIVE = [{word, *count} for word in ("active", "activated", "dense") for count in _COUNT]
EXPERTS = ({"experts"},)
_MODELLED = {"experts", "active_params", "granularity"}  # a law that reads one of these is of routed models


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell which parameters were taken for n_params where a table has both, or where experts leave it open."""
    taken = numbers(runs, "n_params")
    if "n_params" not in reads(law) or taken is None or _MODELLED & reads(law):
        return []
    for active in named(runs, ACTIVE):
        used = numbers(runs, active)
        if used is None:
            continue
        ratio = taken / used
        if not (ratio > ABOVE).any():
            return []
        same = (name for name in runs.columns if name != "n_params" and (runs[name] == taken).all())
        source = next(same, "n_params")
        return [
            f"experts: n_params is column {source}, up to {ratio.max():.3g} times {active} in {(ratio > ABOVE).sum()} "
            f"of {len(runs)} rows; FLOPs (6 N D) follow the parameters that a token uses: take them with "
            f"--n-params-column {shlex.quote(active)}"
        ]
    for name in named(runs, EXPERTS):
        routed = runs[name] > 1
        if routed.any():
            return [
                f"experts: {routed.sum()} of {len(runs)} rows have up to {runs[name].max():.3g} experts ({name}); "
                "does n_params count all of them, or those that a token uses, which FLOPs (6 N D) follow? Choose with "
                "--n-params-column COL"
            ]
    return []

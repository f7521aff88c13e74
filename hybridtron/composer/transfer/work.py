"""Train what patterns were grown into, as one of any number of workers, with a record that is only ever appended to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hybridtron.composer.nas.attempt import attempt
from hybridtron.composer.nas.store import WAIT_SECONDS, Row, Store
from hybridtron.composer.transfer.scores import Layers
from hybridtron.training.config import RunConfig

Unit = tuple[str, Layers, int]  # size, pattern, seed
Results = Mapping[Unit, Row]


@dataclass(frozen=True)
class Work:
    """The grown runs by size and pattern, and the seeds of each."""

    runs: Mapping[tuple[str, Layers], RunConfig]
    seeds: Sequence[int]

    @property
    def units(self) -> list[Unit]:
        """Return all runs, seed by seed, so that all patterns have one as early as can be."""
        return [(*place, seed) for seed in self.seeds for place in self.runs]


def read_results(rows: Sequence[Row]) -> tuple[dict[Unit, Row], dict[Unit, str]]:
    """Return the results of the record's rows, and the last worker to claim each unit."""
    results: dict[Unit, Row] = {}
    claims: dict[Unit, str] = {}
    for row in rows:
        if row["row"] in ("claim", "result"):
            unit = (row["size"], tuple(row["pattern"].split()), row["seed"])
            if row["row"] == "claim":
                claims[unit] = row["worker"]
            else:
                results.setdefault(unit, row)
    return results, claims


def train_all(work: Work, store: Store, watch: Callable[[Results], None]) -> Results:
    """Train until every unit has a result, and return all; `watch` sees every change."""
    while True:
        with store.locked() as rows:
            results, claims = read_results(rows)
            watch(results)
            left = [unit for unit in work.units if unit not in results]
            mine = next((u for u in left if u not in claims or not store.is_alive(claims[u])), None)
            if mine:
                store.append({"row": "claim", **_named(mine), "worker": store.worker})
        if not left:
            return results
        if mine is None:
            time.sleep(WAIT_SECONDS)
            continue
        size, layers, seed = mine
        run = work.runs[size, layers].model_copy(update={"seed": seed})
        trained = attempt(partial(_train, run), {"loss": None})
        with store.locked():
            store.append(
                {"row": "result", **_named(mine), "worker": store.worker, "grown": run.model.pattern, **trained}
            )


def _train(run: RunConfig) -> Row:
    """Return the held-out loss, None where it is not finite."""
    from hybridtron.training.proxy_run import train_proxy

    loss = train_proxy(run)
    return {"loss": loss if math.isfinite(loss) else None}


def _named(unit: Unit) -> Row:
    size, layers, seed = unit
    return {"size": size, "pattern": " ".join(layers), "seed": seed}

"""Grow patterns of a search, train them and compare the orders, as one of any number of workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hybridtron.accounting.equal_size import WORDS, Measure
from hybridtron.composer.grow.kept_blocks import Source
from hybridtron.composer.grow.scale import Method
from hybridtron.composer.nas.store import Store
from hybridtron.composer.report.transfer import write_transfer
from hybridtron.composer.transfer.grown import Growth, read_targets
from hybridtron.composer.transfer.outcome import Transfer, read_transfer
from hybridtron.composer.transfer.scores import Candidate, SearchScores, choose, read_scores
from hybridtron.composer.transfer.work import Results, Work, read_results, train_all
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig

Watch = Callable[[Results, int], None]  # results so far, and how many there will be


@dataclass(frozen=True)
class Study:
    """A transfer study that is ready to run; making one writes nothing."""

    scores: SearchScores
    growth: Growth
    targets: Mapping[str, RunConfig]
    candidates: Sequence[Candidate]
    work: Work
    noise: float | None
    folder: Path

    def run(self, watch: Watch | None = None, only_report: bool = False) -> Transfer:
        """Train what is left, write the page and the numbers into the folder and return them.

        With `only_report` nothing is trained. Raises UserError where the folder holds something else.
        """
        total = len(self.work.units)
        with closing(Store(self.folder, self.growth.identity(self.targets))) as store:
            if only_report:
                with store.locked() as rows:
                    results: Results = read_results(rows)[0]
            else:
                results = train_all(self.work, store, lambda results: watch(results, total) if watch else None)
            found = read_transfer(
                self.scores, self.growth, self.targets, self.candidates, self.work, results, self.noise
            )
            with store.locked():  # one worker at a time writes the page
                write_transfer(found, self.folder)
        return found


def prepare_transfer(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str] | Mapping[str, Any],
    method: Method,
    sizes: Sequence[str] = (),
    overrides: str | Sequence[str] = (),
    patterns: int = 5,
    baselines: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1),
    of: Measure = "parameters",
    tolerance: float = 0.01,
    keep_blocks: Source | None = None,
    noise: float | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Study:
    """Choose patterns and grow them; arguments and errors are those of `search_transfer`."""
    for name, value, known in (("method", method, get_args(Method)), ("of", of, tuple(WORDS))):
        if value not in known:
            raise UserError(f"{name} {value!r}: expected {one_of(value, known)}")
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance = {tolerance}: expected a number between 0 and 1")
    if noise is not None and noise <= 0:
        raise UserError(f"noise = {noise}: expected a number above 0")
    if not seeds or len({*seeds}) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds = {' '.join(map(str, seeds))}: expected different whole numbers, each at least 0")
    scores = read_scores(Path(folder))
    candidates = choose(scores, patterns, baselines)
    targets = read_targets(target, sizes, [overrides] if isinstance(overrides, str) else overrides)
    growth = Growth(method, of, tolerance, keep_blocks)
    runs = {(size, c.layers): growth.grow(c.layers, run) for size, run in targets.items() for c in candidates}
    place = Path(out) if out is not None else Path(folder) / "transfer"
    return Study(scores, growth, targets, candidates, Work(runs, [*seeds]), noise, place)


def search_transfer(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str] | Mapping[str, Any],
    method: Method,
    *,
    on_progress: Watch | None = None,
    **options: Any,
) -> Transfer:
    """Ask whether a search's order of patterns holds in large: grow some of them at equal size, train and rank them.

    Args:
        folder: of a search.
        target: a run's config, a YAML file or a dict: widths, size, recipe and data of the large models.
        method: `stretch` or `stack`.
        on_progress: called with the results so far and their number in the end, whenever it may have changed.
        options: `sizes`, names in the target's table (by default the target as it is); `overrides`, `key=value` for
            the target; `patterns`, how many of the search, the best, the worst and evenly spaced ranks between (5);
            `baselines`, patterns beside them, or their names; `seeds` of each model (0 and 1); `of`, what is made
            equal: `parameters`, `non_embedding`, `flops` or `state`; `tolerance` of it (0.01); `keep_blocks`, the
            config of the small model, whose blocks are kept; `noise`, the standard deviation of one score over seeds,
            where it is known; `out`, the folder of the study, by default `transfer` in that of the search.

    Returns the study, which its folder has as a page and as transfer.json. A study that was interrupted goes on.

    Raises:
        UserError: for a folder without a search, an unknown name or block, a target with errors, and a pattern that
            cannot be made as large; nothing is written then. Also where the folder holds another study.
    """
    return prepare_transfer(folder, target, method, **options).run(on_progress)

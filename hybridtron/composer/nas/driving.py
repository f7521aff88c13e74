"""An open search that a Python program drives: it asks for patterns and tells their scores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.outside import HOLD_HOURS, Asked, Told, ask, tell
from hybridtron.composer.nas.run import report_search
from hybridtron.composer.nas.store import Store
from hybridtron.composer.nas.worker import Search, prepare, priced_space
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.space.layouts import Layout, read_layouts
from hybridtron.config.load import load
from hybridtron.errors import UserError


class OpenSearch:
    """A search in its folder, open for `ask` and `tell`, beside any workers. Leave it with `close`, or use `with`."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.store = Store(search.config.search_folder, search.identity())

    def ask(self, count: int = 1, hold_hours: float = HOLD_HOURS) -> list[Asked]:
        """Take at most `count` patterns to evaluate; none where nothing is left or others have the rest.

        Each is one pattern with one seed, which nobody else gets for `hold_hours`. Raises UserError for bad numbers.
        """
        return ask(self.search, self.store, count, hold_hours)

    def tell(
        self,
        results: Iterable[Mapping[str, Any]] = (),
        *,
        pattern: str | None = None,
        score: float | None = None,
        seed: int | None = None,
        seconds: float | None = None,
        unasked: bool = False,
    ) -> Told:
        """Record scores: `results` with `id` or `pattern`, and `score`, or those of one pattern. All or none.

        Scores that are None or not finite are failures. With `unasked`, patterns that nobody proposed become proposals.
        Raises UserError with the reason for each result that is refused.
        """
        for name, value in (("score", score), ("seed", seed), ("seconds", seconds)):
            if pattern is None and value is not None:
                raise UserError(f"{name} = {value}: is for one `pattern`; expected it beside it, or in the results")
        listed = [*results]
        if pattern is not None:
            given = {"seed": seed, "seconds": seconds}
            known = {key: value for key, value in given.items() if value is not None}
            listed.append({"pattern": pattern, "score": score, **known})
        return tell(self.search, self.store, listed, unasked)

    def report(self) -> Outcome:
        """Write the page of what is recorded and return it; raises UserError where nothing has a score yet."""
        return report_search(self.search.config)[0]

    def close(self) -> None:
        """Leave the search to others."""
        self.store.close()

    def __enter__(self) -> OpenSearch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_search(config: str | os.PathLike[str] | Mapping[str, Any], *overrides: str) -> OpenSearch:
    """Open a search, which is begun if it is new, to ask it for patterns and tell it their scores.

    Args:
        config: a YAML file, or a dict with its keys (docs/search.md).
        overrides: `key=value`, such as `evaluations=20`.

    Raises:
        UserError: where the config does not fit its files or the search in its folder; nothing is written then.
    """
    return OpenSearch(prepare(load(config, overrides, SearchConfig)))


def check_layouts(config: SearchConfig, path: Path) -> list[Layout]:
    """Check every row of a file of patterns against the space of a search; raises UserError where it has none."""
    return read_layouts(path, config.space, priced_space(config)[1])

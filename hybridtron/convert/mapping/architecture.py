"""What each architecture of Hugging Face states: names, settings, and which models of ours it can express."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """One architecture; each has a module in `convert/architectures`, with the table and both directions of settings.

    name: as `--as` takes it, and as Hugging Face's `model_type` writes it.
    class_name: the entry of `architectures` in config.json.
    to_ours: the `model` section of our config from theirs (config.json). Raises UserError for what ours cannot be.
    to_theirs: config.json of a model of ours. Raises UserError that names the first layer that does not fit and why;
        see `cannot_express`.
    table: one entry for every tensor there, in the order in which it is stored.
    other_tables: the same with other names, under which folders of the architecture have been published.
    """

    name: str
    class_name: str
    to_ours: Callable[[Settings], dict[str, Any]]
    to_theirs: Callable[[ModelConfig], dict[str, Any]]
    table: Callable[[ModelConfig], list[Entry]]
    other_tables: tuple[Callable[[ModelConfig], list[Entry]], ...] = ()

    def table_for(self, model: ModelConfig, names: Collection[str]) -> list[Entry]:
        """Return the table of which a folder with tensors of these names has most."""
        tables = [table(model) for table in (self.table, *self.other_tables)]
        return max(tables, key=lambda entries: sum(entry.name in names for entry in entries))

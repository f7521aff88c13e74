"""The table of one model: every tensor there, and the stored parts of ours that it consists of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from hybridtron.checkpoint_reader import stored_as
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry, Shapes, check_complete
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors


@dataclass(frozen=True)
class Table:
    """The tensors of an architecture for one model, and the stored parts of ours that they consist of."""

    architecture: str
    entries: Sequence[Entry]
    shapes: Shapes
    float32: frozenset[str] = field(default_factory=frozenset)  # parts that are float32 in every model

    @classmethod
    def of(cls, architecture: Architecture, model: ModelConfig, names: Collection[str] = ()) -> Table:
        """Build the table of a model, for a folder with tensors of these names where there is one already."""
        entries, shapes = architecture.table_for(model, names), stored_shapes(model)
        check_complete(entries, shapes)
        wide = [
            key for name, spec in model_tensors(model).items() if spec.keeps_float32 for key, _ in stored_as(name, spec)
        ]
        return cls(architecture.name, entries, shapes, frozenset(wide))

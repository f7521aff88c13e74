"""A folder of Hugging Face seen as the parts that our checkpoints store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.formats.byte_runs import bytes_of, common_runs, new_tensor
from hybridtron.convert.formats.source import Shape, Source, TensorInfo
from hybridtron.convert.importing import CONFIG, naming_file, our_model, read_settings
from hybridtron.convert.mapping.entry import Entry, Shapes, disassemble
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.convert.mapping.settings import Settings
from hybridtron.convert.streaming import require_same_tensors
from hybridtron.distributed.checkpoint.boxes import Box
from hybridtron.model.config import ModelConfig


class AsStored:
    """The tensors of a source under the keys and in the arrangement of our checkpoints; see `Source`.

    What has no entry in the table keeps its name. Tensors are read whole there; the last one is kept.
    """

    def __init__(self, source: Source, entries: Sequence[Entry], shapes: Shapes) -> None:
        self.source, self.shapes = source, shapes
        self.entries: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.name in source.tensors:
                for part in entry.parts:
                    self.entries.setdefault(part, []).append(entry)
        named = {entry.name for entry in entries}
        self.tensors = {name: info for name, info in source.tensors.items() if name not in named}
        for part, first in self.entries.items():
            self.tensors[part] = TensorInfo(shapes[part], source.tensors[first[0].name].dtype)
        self._last: tuple[str, list[Tensor]] | None = None

    def read(self, name: str, offsets: Shape | None = None, sizes: Shape | None = None) -> Tensor:
        """Read a box of a stored part; see `Source.read`."""
        if name not in self.entries:
            return self.source.read(name, offsets, sizes)
        info = self.tensors[name]
        wanted = Box(offsets or (0,) * len(info.shape), info.shape if sizes is None else sizes)
        values = new_tensor(wanted.sizes, info.dtype)
        width, memory = info.dtype.itemsize, bytes_of(values)
        for entry in self.entries[name]:
            box = Box(*entry.box(self.shapes[name]))
            runs = list(common_runs(box, wanted))
            if not runs:
                continue
            content = bytes_of(self._parts(entry)[entry.parts.index(name)].contiguous())
            for stored, held, length in runs:
                memory[held * width : (held + length) * width] = content[stored * width : (stored + length) * width]
        return values

    def _parts(self, entry: Entry) -> list[Tensor]:
        if self._last is None or self._last[0] != entry.name:
            self._last = None
            self._last = entry.name, disassemble(entry, self.source.read(entry.name), self.shapes)
        return self._last[1]


def as_stored(folder: Path, source: Source) -> Source:
    """See a folder of Hugging Face as stored parts where its architecture has a table, else as it is.

    Raises UserError where its config.json is of a model that cannot be ours, or one whose tensors have other shapes;
    DamagedCheckpoint, OSError.
    """
    file = folder / CONFIG
    if not file.is_file():
        return source
    settings = read_settings(folder)
    architecture = ARCHITECTURES.get(str(settings.get("model_type")))
    if architecture is None:
        return source
    with naming_file(file):
        model = build(our_model(architecture, Settings(settings, str(file))), ModelConfig)
    entries, shapes = architecture.table_for(model, source.tensors), stored_shapes(model)
    there = {entry.name: entry.shape_there(shapes) for entry in entries if entry.name in source.tensors}
    require_same_tensors(str(folder), there, {name: source.tensors[name] for name in there})
    return AsStored(source, entries, shapes)

"""Folders of safetensors files, as Hugging Face has them, as source and sink: nothing is mapped or held whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from hybridtron.convert.formats.byte_runs import bytes_of, common_runs, new_tensor, read_runs, write_at
from hybridtron.convert.formats.folder_sink import FolderSink
from hybridtron.convert.formats.safetensors_header import NAMES, Place, elements, header_of, read_header
from hybridtron.convert.formats.safetensors_header import PICKLES as MAGIC
from hybridtron.convert.formats.source import Shape, TensorInfo
from hybridtron.distributed.checkpoint.boxes import Box
from hybridtron.errors import DamagedCheckpoint, UserError, unreadable
from hybridtron.files import open_to_read, read_plain, replace_file, sync_folder

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of a file, at most, as Hugging Face divides models
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # files of torch.save


class SafetensorsSource:
    """The tensors of a folder with model.safetensors or with shards and their index, or of one file; see `Source`.

    Raises:
        UserError: where there is no such file, where only pickles are there, or where index and shards disagree.
        DamagedCheckpoint: where a file is cut, or its header does not describe it.
        OSError: where the system cannot read one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder if folder.is_dir() else folder.parent
        self._places: dict[str, tuple[str, Place]] = {}
        for name, places in _files(folder).items():
            self._places |= {tensor: (name, place) for tensor, place in places.items()}
        self.tensors = {tensor: place[0] for tensor, (_, place) in self._places.items()}

    @property
    def files(self) -> list[str]:
        """The files that hold tensors."""
        return sorted({name for name, _ in self._places.values()})

    def read(self, name: str, offsets: Shape | None = None, sizes: Shape | None = None) -> Tensor:
        """Read a box of a tensor; see `Source.read`."""
        file_name, (info, start) = self._places[name]
        whole = Box((0,) * len(info.shape), info.shape)
        wanted = Box(offsets or whole.offsets, info.shape if sizes is None else sizes)
        values = new_tensor(wanted.sizes, info.dtype)
        path = self.folder / file_name
        try:
            with open_to_read(path) as file:
                runs = common_runs(whole, wanted)
                read_runs(file.fileno(), start, runs, info.dtype.itemsize, bytes_of(values))
        except (OSError, EOFError) as error:
            raise unreadable(path, error) from None
        return values


def _files(folder: Path) -> dict[str, dict[str, Place]]:
    """Return the tensors of each file of a folder, or of one file, and their places."""
    if folder.is_file():
        return {folder.name: read_header(folder)}
    single, index = folder / FILE, folder / INDEX
    if single.exists() and index.exists():
        raise UserError(f"{folder}: has both {FILE} and {INDEX}; expected one of them")
    if single.exists():
        return {FILE: read_header(single)}
    if not index.exists():
        raise UserError(f"{folder}: {_nothing_there(folder)}")
    return _shards(folder, _weight_map(index))


def _nothing_there(folder: Path) -> str:
    """Say what a folder without safetensors files holds instead."""
    if not folder.is_dir():
        return "no such folder"
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern) if _is_pickle(path))
    if not pickles:
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
        return f"has no {FILE} and no {INDEX}" + (f" that names {shards[0]} and the other files" if shards else "")
    return (
        f"holds {pickles[0]}, a pickle of torch.save, which can run code when it is read; expected {FILE}, which "
        "save_pretrained of transformers writes"
    )


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins as torch.save writes it."""
    with open_to_read(path) as file:
        return file.read(8).startswith(MAGIC)


def _weight_map(index: Path) -> dict[str, str]:
    """Read which file each tensor is in. Raises UserError, DamagedCheckpoint, OSError."""
    try:
        found = json.loads(read_plain(index))["weight_map"]
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            raise ValueError("its weight_map is no mapping of names to files")
        for file in found.values():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise UserError(f"{index}: names {file!r}; expected a safetensors file in its own folder")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable(index, error, f"has no weight_map: {error}") from None
    return found


def _shards(folder: Path, weight_map: Mapping[str, str]) -> dict[str, dict[str, Place]]:
    """Read the files that an index names. Raises UserError where they hold other tensors than it says."""
    found = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise DamagedCheckpoint(f"{folder / name}: damaged: is missing, and named by {INDEX}")
        found[name] = read_header(folder / name)
        expected = {tensor for tensor, file in weight_map.items() if file == name}
        for tensor in sorted(expected ^ found[name].keys()):
            there, said = ("is", "not there") if tensor in found[name] else ("is not", "there")
            raise UserError(f"{folder / name}: {tensor} {there} in it; by {INDEX} it is {said}")
    return found


class SafetensorsSink(FolderSink):
    """A folder of safetensors files that is being written; see `Sink`.

    Args:
        folder: to make.
        tensors: all tensors, in the order in which they are divided into files.
        extra: content of further small files by name, such as config.json.
        shard_bytes: of a file, at most; a larger tensor has a file of its own.
        progress: called with the number of bytes of tensors written so far.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        extra: Mapping[str, bytes] | None = None,
        shard_bytes: int = SHARD_BYTES,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        for name, info in tensors.items():
            if info.dtype not in NAMES:
                raise UserError(
                    f"{name}: safetensors files have no {info.dtype}; expected one of {', '.join(NAMES.values())}"
                )
        self.shards = _divided(tensors, shard_bytes)
        super().__init__(folder, tensors, sum(info.size_bytes for info in tensors.values()), progress)
        self.extra = dict(extra or {})
        self._where: dict[str, tuple[int, int]] = {}  # descriptor of its file, and its first byte there

    def _begin(self) -> None:
        for name, content in self.extra.items():
            self.add_file(name, content)
        for name, tensors in self.shards.items():
            descriptor = self._new_file(name)
            header, places = header_of(tensors)
            write_at(descriptor, 0, header)
            self._where |= {tensor: (descriptor, start) for tensor, (_, start) in places.items()}

    def _put(self, name: str, box: Box, content: memoryview) -> None:
        info, (descriptor, start) = self.tensors[name], self._where[name]
        width = info.dtype.itemsize
        for stored, held, length in common_runs(Box((0,) * len(info.shape), info.shape), box):
            write_at(descriptor, start + stored * width, content[held * width : (held + length) * width])

    def _complete(self) -> None:
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        if list(self.shards) != [FILE]:
            totals = {"total_parameters": elements(self.tensors), "total_size": self.size_bytes}
            weight_map = {tensor: name for name, tensors in self.shards.items() for tensor in tensors}
            content = json.dumps({"metadata": totals, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
            replace_file(self.draft / INDEX, content + "\n")
        sync_folder(self.draft)


def _divided(tensors: Mapping[str, TensorInfo], shard_bytes: int) -> dict[str, dict[str, TensorInfo]]:
    """Divide tensors, in their order, into files, by their names."""
    shards: list[dict[str, TensorInfo]] = [{}]
    room = shard_bytes
    for name, info in tensors.items():
        if info.size_bytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = info
        room -= info.size_bytes
    if len(shards) == 1:
        return {FILE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, 1)}

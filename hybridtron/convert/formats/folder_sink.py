"""What the sinks of all formats share: the folder that appears when whole, checks, progress."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Self

from torch import Tensor

from hybridtron.convert.formats.byte_runs import bytes_of
from hybridtron.convert.formats.output_folder import output_folder
from hybridtron.convert.formats.source import Shape, TensorInfo
from hybridtron.distributed.checkpoint.boxes import Box
from hybridtron.files import open_to_write, replace_file

FLUSHED = 256 * 2**20  # bytes after which a thread brings files to disk while more is written


class FolderSink:
    """Base of the sinks; see `Sink`. A format opens its files, puts boxes into them, and completes them.

    Several threads may write, each other boxes.

    Args:
        folder: to make.
        tensors: all that will be written, in the order in which it is stored.
        size_bytes: how much that takes.
        progress: called with the number of bytes of tensors written so far.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        size_bytes: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.folder, self.tensors, self.size_bytes = folder, dict(tensors), size_bytes
        self.draft = folder  # the folder while it is written
        self.progress = progress
        self.done_bytes = 0
        self._left = {name: info.size_bytes for name, info in tensors.items()}
        self._context: AbstractContextManager[None] = contextlib.nullcontext()
        self._files = ExitStack()
        self._lock = threading.Lock()
        self._descriptors: list[int] = []
        self._flushes: list[Future[None]] = []

    def write(self, name: str, tensor: Tensor, offsets: Shape | None = None) -> None:
        """Write a box of a tensor; see `Sink.write`."""
        info = self.tensors[name]
        box = Box(offsets or (0,) * tensor.dim(), tuple(tensor.shape))
        if (
            tensor.dtype != info.dtype
            or not _is_inside(box, info.shape)
            or (offsets is None and box.sizes != info.shape)
        ):
            raise ValueError(f"{name}: {tensor.dtype} {list(box.sizes)} at {list(box.offsets)} is no box of {info}")
        self._put(name, box, bytes_of(tensor.detach().cpu().contiguous()))
        size = box.numel * info.dtype.itemsize
        with self._lock:
            self._left[name] -= size
            if (self.done_bytes + size) // FLUSHED > self.done_bytes // FLUSHED:
                self._flushes.append(self._flusher.submit(self._flush))
            self.done_bytes += size
            if self.progress:
                self.progress(self.done_bytes)

    def add_file(self, name: str, content: bytes) -> None:
        """Write a further small file; see `Sink.add_file`."""
        replace_file(self.draft / name, content)

    def __enter__(self) -> Self:
        self._context = self._open()
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._context.__exit__(*error)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Hold the folder and its files open, and complete them where the block raises nothing."""
        with (
            output_folder(self.folder, self.size_bytes) as self.draft,
            ExitStack() as self._files,
            ThreadPoolExecutor(1) as self._flusher,
        ):
            self._begin()
            yield
            for flush in self._flushes:
                flush.result()
            for name, left in self._left.items():
                if left:
                    raise ValueError(f"{name}: {left} of its {self.tensors[name].size_bytes} bytes were not written")
            self._complete()

    def _new_file(self, name: str) -> int:
        """Return the descriptor of a new file, which is closed with the sink."""
        descriptor = self._files.enter_context(open_to_write(self.draft / name, os.O_EXCL)).fileno()
        self._descriptors.append(descriptor)
        return descriptor

    def _flush(self) -> None:
        """Bring to disk what is written so far. Raises OSError."""
        for descriptor in self._descriptors:
            os.fdatasync(descriptor)

    def _begin(self) -> None:
        """Make the files."""
        raise NotImplementedError

    def _put(self, name: str, box: Box, content: memoryview) -> None:
        """Write the bytes of a box into its file."""
        raise NotImplementedError

    def _complete(self) -> None:
        """Write what remains once all tensors are written, and bring everything to disk."""
        raise NotImplementedError


def _is_inside(box: Box, shape: Shape) -> bool:
    """Return whether a box lies in a tensor of this shape."""
    return len(box.sizes) == len(shape) and all(
        offset >= 0 and offset + size <= length for offset, size, length in zip(*box, shape, strict=True)
    )

"""The compiled kernels, built from this folder's C files by the system's compiler at first use and kept in a cache.

They serve float32 on a CPU. Where they cannot be had every op takes its PyTorch form; `status` tells why.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from hybridtron.ops.elementwise.precision import under_transforms
from hybridtron.ops.native.declarations import checked_kernels, is_plain, modes_ignored

# To make vectors of loops and sums a compiler must be free to reorder additions and to ignore errno, floating-point
# exceptions and the sign of zero. NaN and infinities keep their meaning, and the processor its handling of denormals.
_COMPILE = [
    "-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fassociative-math", "-fopenmp", "-fPIC", "-fvisibility=hidden",
]  # fmt: skip
if platform.machine() == "x86_64":
    _COMPILE.append("-mprefer-vector-width=512")
# OpenMP's symbols are left to be found in the one library that PyTorch has loaded: two would fight over the cores.
_LINK = ["-shared", "-fPIC"]
_SECONDS = 300  # that a compiler may take
_ROWS = 64  # ROWS of common.h


class Kernels(SimpleNamespace):
    """Every kernel as a function of tensors, numbers and, for no tensor, None; threads are those of PyTorch.

    It raises TypeError or ValueError, and runs nothing, where an argument is not as the C source declares it.
    """


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """Return the kernels if they can take these tensors: plain float32 on a CPU, under no torch.func transform."""
    with modes_ignored():
        if not all(map(is_plain, tensors)):
            return None
    return None if under_transforms() else load()[0]


def flops_are_counted() -> bool:
    """Return whether PyTorch counts FLOPs here by the names of its operations, which shows it no kernel's products."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    counter = sys.modules.get("torch.utils.flop_counter")
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    return counter is not None and any(isinstance(mode, counter._FlopCounterMode) for mode in modes)


def require_kernels() -> Kernels:
    """Return the kernels for an implementation that was selected because they are there; each call checks its tensors.

    Raises RuntimeError where they have been switched off since, as between a forward and its backward pass.
    """
    kernels, reason = load()
    if kernels is None:
        raise RuntimeError(f"compiled kernels were selected and are gone: {reason}")
    return kernels


def pieces(rows: int) -> int:
    """Return how many partial sums a kernel leaves that adds over rows: as many on any number of threads."""
    return -(-rows // _ROWS)


def status() -> str | None:
    """Return None where the kernels are in use, else the reason why not, in one line."""
    return load()[1]


@functools.cache
def load() -> tuple[Kernels | None, str | None]:
    """Return the kernels and None, or None and the reason why there are none."""
    if os.environ.get("HYBRIDTRON_NATIVE") == "0":
        return None, "switched off by HYBRIDTRON_NATIVE=0"
    compiler = shutil.which("cc")
    if compiler is None:
        return None, "there is no C compiler `cc`"
    try:
        return _build(compiler), None
    except subprocess.CalledProcessError as error:
        return None, f"the C compiler failed: {_first_error(error.stderr)}"
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return None, _first_error(str(error))


def _build(compiler: str) -> Kernels:
    """Load the library of this source, compiler and processor, compiling it unless it is there already."""
    folder = Path(__file__).parent
    files = sorted(folder.glob("*.c"))
    source = "".join(file.read_text(encoding="utf-8") for file in [*sorted(folder.glob("*.h")), *files])
    identity = repr((source, _COMPILE, _LINK, _output(compiler, "--version"), _processor()))
    library = _cache_folder() / f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        with _turn(library.parent):
            if not library.exists():
                _compile(compiler, files, library)
    return Kernels(**dict(checked_kernels(ctypes.CDLL(str(library)), source)))


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one process at a time compile, so that of those that start together the first does it for all.

    Where a file system has no locks on folders each builds its own, and whole files replace one another.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(compiler: str, files: Sequence[Path], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        _output(compiler, *_COMPILE, "-c", *map(str, files), cwd=scratch)
        objects = [file.with_suffix(".o").name for file in files]
        _output(compiler, *_LINK, *objects, "-lm", "-o", library.name, cwd=scratch)
        os.replace(Path(scratch, library.name), library)


def _cache_folder() -> Path:
    """Return the cache folder, created if missing. Raises OSError if others may write to it: its files are run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridtron"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(f"others than you may write to {folder}")
    return folder


def _processor() -> str:
    """Return a text that identifies the processor features that `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model", "flags", "Features", "CPU"))}))


def _output(*command: str, cwd: str | None = None) -> str:
    options: dict[str, Any] = {"cwd": cwd, "capture_output": True, "text": True, "errors": "replace"}
    return subprocess.run(command, check=True, timeout=_SECONDS, **options).stdout


def _first_error(text: str) -> str:
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line), lines[0])

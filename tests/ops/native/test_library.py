import errno
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hybridtron.ops.elementwise.activations import swiglu, swiglu_reference
from hybridtron.ops.native import library


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, with nothing loaded from another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load.cache_clear()
    yield tmp_path / "hybridtron"
    library.load.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache folder that the first use has made."""
    home = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        library.load.cache_clear()
        assert library.status() is None
    library.load.cache_clear()
    return home / "hybridtron"


def compiler_that(tmp_path, monkeypatch, does):
    """Puts a `cc` first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "cc"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def refuse(*arguments):
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def assert_falls_back(reason):
    assert library.kernels_for(torch.ones(1)) is None
    assert reason in library.status()
    x = torch.randn(3, 10)
    torch.testing.assert_close(swiglu(x), swiglu_reference(x))


def test_a_library_is_compiled_once_and_kept_for_the_user_alone(built, cache, tmp_path, monkeypatch):
    (kept,) = built.iterdir()
    assert stat.S_IMODE(built.stat().st_mode) == 0o700
    before = kept.stat()
    monkeypatch.setenv("XDG_CACHE_HOME", str(built.parent))
    compiler_that(tmp_path, monkeypatch, f'[ "$1" = --version ] && exec {shutil.which("cc")} "$@"; exit 1')
    assert library.status() is None
    after = kept.stat()  # with another time of reading
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_compiler_compiles_anew(built, cache, tmp_path, monkeypatch):
    shutil.copytree(built, cache)
    real = shutil.which("cc")
    compiler_that(tmp_path, monkeypatch, f'[ "$1" = --version ] && echo other && exit; exec {real} "$@" -O0')
    assert library.status() is None
    assert len(list(cache.iterdir())) == 2


def test_switched_off(cache, monkeypatch):
    monkeypatch.setenv("HYBRIDTRON_NATIVE", "0")
    assert_falls_back("HYBRIDTRON_NATIVE=0")
    assert not cache.exists()


def test_a_compiler_that_fails(cache, tmp_path, monkeypatch):
    compiler_that(tmp_path, monkeypatch, '[ "$1" = --version ] && exit; echo "x.c:1: error: no such thing" >&2; exit 1')
    assert_falls_back("x.c:1: error: no such thing")
    assert list(cache.iterdir()) == []


def test_no_compiler(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert_falls_back("no C compiler")


def test_a_library_that_cannot_be_loaded(built, cache):
    (kept,) = built.iterdir()
    cache.mkdir(mode=0o700)
    (cache / kept.name).write_bytes(b"not a library")
    assert_falls_back(kept.name)


def test_a_cache_that_is_a_file(tmp_path, cache):
    cache.write_text("")
    assert_falls_back(str(cache))


def test_a_cache_that_others_may_write_to(cache):
    cache.mkdir()
    cache.chmod(0o777)
    assert_falls_back("others than you may write")


def test_of_processes_that_start_together_one_compiles_for_all(cache, tmp_path, monkeypatch):
    real, log = shutil.which("cc"), tmp_path / "calls"
    compiler_that(
        tmp_path, monkeypatch, f'echo "$@" >> {log}; [ "$1" = --version ] && exec {real} "$@"; exec {real} "$@" -O0'
    )
    code = textwrap.dedent("""
        import torch
        from hybridtron.ops.native import library
        from hybridtron.ops.elementwise.activations import swiglu, swiglu_reference
        assert library.status() is None, library.status()
        x = torch.randn(3, 10)
        torch.testing.assert_close(swiglu(x), swiglu_reference(x))
    """)
    root = Path(__file__).parents[3]
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=root) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(list(cache.iterdir())) == 1
    assert sum(" -c " in call for call in log.read_text().splitlines()) == 1


def test_without_locks_each_process_compiles_its_own(cache, tmp_path, monkeypatch):
    """As on a network's file system, where a folder cannot be locked."""
    monkeypatch.setattr(library.fcntl, "flock", refuse)
    compiler_that(tmp_path, monkeypatch, f'exec {shutil.which("cc")} "$@" -O0')
    assert library.status() is None


FORKS = """
import multiprocessing
import torch
from hybridtron.ops.elementwise.activations import swiglu

def total(threads):
    torch.set_num_threads(threads)
    print(swiglu(torch.ones(600, 400)).sum().item())

total(1)
process = multiprocessing.get_context("fork").Process(target=total, args=(2,))
process.start()
process.join()
"""


def test_a_forked_process_can_use_what_its_parent_loaded():
    """In a program of its own: to fork a process whose OpenMP has run several threads is not safe."""
    done = subprocess.run([sys.executable, "-u", "-c", FORKS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    parent, child = done.stdout.split()
    assert float(parent) == pytest.approx(float(child))


def test_denormals_stay_what_they_were():
    assert library.status() is None
    assert torch.tensor(1e-40) * 1.0 > 0


@pytest.mark.parametrize("value", [0.0, -0.5, -20.0, -87.0, -200.0, 3.0, 88.0, 300.0])
def test_exponentials_at_their_ends(value):
    gate = torch.full((1, 40), value)
    y, expected = swiglu(torch.cat([gate, torch.ones(1, 40)], 1)), torch.nn.functional.silu(gate.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(value):
    gate = torch.full((1, 40), value)
    assert not swiglu(torch.cat([gate, torch.ones(1, 40)], 1)).isfinite().any()

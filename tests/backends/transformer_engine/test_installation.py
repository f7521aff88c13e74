"""A Transformer Engine that is absent, broken or too old gives one line, and megatron-core does without it."""

import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hybridtron.backends.transformer_engine import installation

BROKEN = {
    "only the meta package": (
        "raise RuntimeError('Found empty `transformer-engine` meta package installed.\\nInstall it with ...')",
        ["RuntimeError: Found empty `transformer-engine` meta package installed)", "of one version: pip install"],
    ),
    "versions that differ": (
        "raise AssertionError('Transformer Engine package version mismatch.')",
        ["AssertionError: Transformer Engine package version mismatch)", "transformer_engine_torch"],
    ),
    "a missing library": (
        "import ctypes; ctypes.CDLL('libcudnn_absent.so')",
        ["OSError: libcudnn_absent.so", "this library of CUDA's"],
    ),
    "a missing package": ("import onnxscript_absent", ["onnxscript_absent is missing: pip install onnxscript_absent"]),
}


@pytest.fixture(autouse=True)
def unprobed(monkeypatch):
    """Forget what earlier tests found, and leave nothing to later ones."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "transformer_engine"}
    installation.import_problem.cache_clear()
    monkeypatch.setenv("NVTE_FRAMEWORK", "pytorch")
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    yield
    installation.import_problem.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package of that name, whose `pytorch` runs the code, first on the path of an apparent CUDA machine."""

    def write(code: str) -> None:
        folder = tmp_path / "transformer_engine"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "pytorch.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    return write


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_installation_is_one_line_and_looks_absent(what, install, caplog):
    code, expected = BROKEN[what]
    install(code)
    problem = installation.transformer_engine_problem()
    assert problem is not None
    assert "\n" not in problem
    assert problem.startswith("Transformer Engine cannot be imported")
    for text in expected:
        assert text in problem
    installation.hide_unusable_transformer_engine()
    installation.hide_unusable_transformer_engine()
    assert caplog.messages == [problem]
    with pytest.raises(ImportError):
        import transformer_engine.pytorch  # noqa: F401
    assert installation.transformer_engine_problem() == problem


def test_a_whole_installation_is_used_if_it_is_new_enough(install, monkeypatch):
    install("import sys; assert sys.modules['jax'] is None")
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setattr(installation, "version", lambda name: "2.11.0+local")
    assert installation.transformer_engine_problem() is None
    assert "jax" not in sys.modules
    installation.hide_unusable_transformer_engine()
    import transformer_engine.pytorch  # noqa: F401

    monkeypatch.setattr(installation, "version", lambda name: "2.9.1")
    problem = installation.transformer_engine_problem()
    assert problem is not None
    assert problem.startswith("transformer_engine 2.9.1 is installed; expected at least 2.11: pip install")


def test_without_cuda_it_is_never_imported(install, monkeypatch):
    install("raise AssertionError('imported')")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert installation.transformer_engine_problem() == "Transformer Engine needs a CUDA device"
    installation.hide_unusable_transformer_engine()
    with pytest.raises(ImportError, match="transformer_engine"):
        import transformer_engine.pytorch  # noqa: F401


def test_an_absent_one_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    problem = installation.transformer_engine_problem()
    assert problem == f"Transformer Engine is not installed: {installation.INSTALL}"


def test_the_cudnn_of_torch_is_loaded_before_another_one_is_looked_for(tmp_path):
    folder = tmp_path / "nvidia" / "cudnn" / "lib"
    folder.mkdir(parents=True)
    for name in ("libcudnn.so.9", "libcudnn_graph.so.9", "unrelated.so.9"):
        shutil.copy(torch._C.__file__, folder / name)  # a small shared library, in every Python that has torch
    assert installation.load_cudnn_of_torch(tmp_path) == 2
    loaded = Path("/proc/self/maps").read_text()
    assert all(f"{folder}/{name}" in loaded for name in ("libcudnn.so.9", "libcudnn_graph.so.9"))
    assert "unrelated.so.9" not in loaded
    assert installation.load_cudnn_of_torch(tmp_path / "absent") == 0


def test_a_library_of_cudnn_is_loaded_after_those_that_it_needs(tmp_path, monkeypatch):
    folder, loaded = tmp_path / "nvidia" / "cudnn" / "lib", []
    folder.mkdir(parents=True)
    for name in ("", "_adv", "_cnn", "_graph", "_heuristic", "_ops"):
        (folder / f"libcudnn{name}.so.9").touch()
    monkeypatch.setattr(installation.ctypes, "CDLL", lambda path, mode: loaded.append(Path(path).name))
    installation.load_cudnn_of_torch(tmp_path)
    assert loaded[:2] == ["libcudnn_graph.so.9", "libcudnn_ops.so.9"]
    assert len(loaded) == 6

"""What `hybridtron doctor` says of a GPU and of packages for it that are missing, half-installed or broken."""

import pytest
import torch

from hybridtron.accounting import doctor, gpu_report
from hybridtron.accounting.gpu_report import GpuPackage, describe_gpu, gpu_packages

ENGINE = "transformer-engine"


@pytest.fixture
def installed(monkeypatch):
    """Versions of the distributions that are there, by name."""
    found = {}
    monkeypatch.setattr(gpu_report, "installed", found.get)
    return found


def test_without_cuda_no_gpu_is_described():
    assert torch.cuda.is_available() == (describe_gpu() is not None)


def test_what_is_not_installed_is_no_problem(installed):
    assert gpu_packages(try_imports=True)[ENGINE] == {"version": None, "problem": None}


def test_a_whole_engine_is_no_problem(installed):
    installed |= {ENGINE: "2.11.0", "transformer-engine-torch": "2.11.0", "transformer-engine-cu13": "2.11.0"}
    assert gpu_packages(try_imports=False)[ENGINE] == {"version": "2.11.0", "problem": None}


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({ENGINE: "2.11.0", "transformer-engine-cu13": "2.11.0"}, "is there without transformer-engine-torch"),
        (
            {ENGINE: "2.11.0", "transformer-engine-torch": "2.11.0"},
            "is there without transformer-engine-cu13 or transformer-engine-cu12",
        ),
        ({"transformer-engine-torch": "2.11.0"}, "transformer-engine-torch 2.11.0 is there without transformer-engine"),
        (
            {ENGINE: "2.11.0", "transformer-engine-torch": "2.9.0", "transformer-engine-cu13": "2.11.0"},
            "transformer-engine 2.11.0 with transformer-engine-torch 2.9.0: expected the same version",
        ),
    ],
)
def test_a_half_installed_engine_says_what_is_missing(installed, monkeypatch, parts, problem):
    installed |= parts
    monkeypatch.setattr(doctor, "gpu_packages", gpu_packages)
    assert problem in gpu_packages(try_imports=False)[ENGINE]["problem"]
    assert any(problem in each for each in doctor.examine()["problems"])


def test_a_package_that_cannot_be_imported_gives_the_reason(installed, monkeypatch, tmp_path):
    (tmp_path / "broken_kernels.py").write_text("raise OSError('libcuda.so.1: cannot open\\nmore')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gpu_report, "PACKAGES", (GpuPackage("broken", "broken_kernels", "tests"),))
    installed["broken"] = "1.0"
    assert gpu_packages(try_imports=False)["broken"]["problem"] is None
    problem = gpu_packages(try_imports=True)["broken"]["problem"]
    assert problem == "import broken_kernels: OSError: libcuda.so.1: cannot open"


def test_a_gpu_is_shown_line_by_line(monkeypatch, capsys):
    report = doctor.examine()
    gpu = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "driver": None, "cudnn": gpu_report._dotted(91300)}
    doctor.show({**report, "gpu": gpu})
    printed = " ".join(capsys.readouterr().out.split())
    assert "GPU name NVIDIA H100 80GB HBM3 GPU capability 9.0 GPU driver unknown GPU cudnn 9.13.0" in printed


def test_a_cudnn_that_torch_refuses_is_a_problem_of_one_line(monkeypatch):
    def refuse():
        raise RuntimeError("cuDNN version incompatibility: PyTorch needs  (9, 19, 0)\nbut found (9, 14, 0)")

    monkeypatch.setattr(torch.backends.cudnn, "version", refuse)
    version, problem = gpu_report.cudnn()
    assert version is None
    assert problem == "cuDNN version incompatibility: PyTorch needs (9, 19, 0) but found (9, 14, 0)"

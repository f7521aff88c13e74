"""Which releases of megatron-core are supported, as pyproject.toml says too."""

import tomllib
from pathlib import Path

import pytest

from hybridtron.distributed.megatron_versions import BELOW, OLDEST, release, unsupported

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("text", ["0.16.1", "0.17.0", "0.19.2", "0.19.2rc1+local"])
def test_supported(text):
    assert unsupported(text) is None


@pytest.mark.parametrize("text", ["0.16.0", "0.15.9", "0.20.0", "1.0"])
def test_unsupported_is_one_line_with_the_range(text):
    problem = unsupported(text)
    assert problem == f"megatron-core {text} is installed; hybridtron needs at least 0.16.1 and below 0.20"


def test_numbers_of_a_version():
    assert release("0.19.2rc0") == (0, 19, 2)
    assert release("unknown") == ()


def test_pyproject_has_the_same_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"megatron-core>={OLDEST},<{BELOW}" in project["dependencies"]

import pytest
import torch

from hybridtron.ops.native import library


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def native():
    """The compiled kernels, which a machine that runs the tests must have."""
    assert library.status() is None


@pytest.fixture(params=["native", "torch"])
def form(request, monkeypatch):
    """A test once with the compiled kernels and once without."""
    if request.param == "native":
        request.getfixturevalue("native")
        yield request.param
    else:
        monkeypatch.setenv("HYBRIDTRON_NATIVE", "0")
        library.load.cache_clear()
        yield request.param
        library.load.cache_clear()

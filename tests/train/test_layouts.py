"""The layout over processes does not change what is trained."""

import json

import pytest

BOUND = 1e-5


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def one_process(tiny, hybridtron):
    """Losses of 20 steps in one process."""
    folder = tiny.parent / "one"
    result = hybridtron("train", tiny, f"folder={folder}")
    assert result.returncode == 0, result.stderr
    return losses(folder)


def test_two_processes_train_the_same(tiny, one_process, hybridtron):
    assert len(one_process) == 20
    assert one_process[-1] < one_process[0] - 0.5
    layouts = {
        "tensor parallel": ["parallel.tensor=2"],
        "tensor and sequence parallel": ["parallel.tensor=2", "parallel.sequence=true", "train.sample_tokens=3"],
        "data parallel": [],
    }
    for name, overrides in layouts.items():
        folder = tiny.parent / name.replace(" ", "_")
        result = hybridtron("train", tiny, f"folder={folder}", *overrides, "--nproc", 2)
        assert result.returncode == 0, result.stderr
        assert losses(folder) == pytest.approx(one_process, abs=BOUND), name


def test_tied_embeddings_are_cut_like_any_other(tiny, hybridtron):
    folders = {}
    for name, more in {"whole": [], "cut": ["parallel.tensor=2", "--nproc", 2]}.items():
        folders[name] = tiny.parent / name
        overrides = [f"folder={folders[name]}", "model.tie_embeddings=true", "train.steps=8"]
        result = hybridtron("train", tiny, *overrides, *more)
        assert result.returncode == 0, result.stderr
    assert losses(folders["cut"]) == pytest.approx(losses(folders["whole"]), abs=BOUND)


def test_micro_batches_do_not_change_the_losses(tiny, one_process, hybridtron):
    folder = tiny.parent / "micro"
    result = hybridtron("train", tiny, f"folder={folder}", "train.micro_batch_size=1")
    assert result.returncode == 0, result.stderr
    assert losses(folder) == pytest.approx(one_process, abs=BOUND)


def test_the_torch_backend_trains_the_same(tiny, one_process, hybridtron):
    folder = tiny.parent / "torch"
    result = hybridtron("train", tiny, f"folder={folder}", "model.backend=torch")
    assert result.returncode == 0, result.stderr
    assert losses(folder) == pytest.approx(one_process, abs=BOUND)

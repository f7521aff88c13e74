"""The layout over processes does not change what is trained."""

import json

import pytest

BOUND = 1e-5


def losses(run):
    """Of every step, and held out at the end."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows] + [rows[-1]["valid_loss"]]


def test_other_layouts_train_and_evaluate_the_same(tiny, hybridtron):
    """Seven held-out sequences, which no number of processes divides; and the same sample of text."""
    layouts = {
        "one process": [],
        "data parallel": ["--nproc", 2],
        "tensor and sequence parallel": [
            "parallel.tensor=2", "parallel.sequence=true", "--nproc", 2],
        "interleaved pipeline": [
            "parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.cpu_offload_layers=1", "--nproc", 2],
        "smaller micro-batches": ["train.micro_batch_size=1"],
        "torch backend": ["model.backend=torch"],
    }  # fmt: skip
    found, samples = {}, set()
    for name, overrides in layouts.items():
        folder = tiny.parent / name.replace(" ", "_")
        shared = [f"folder={folder}", "train.eval_sequences=7", "train.sample_tokens=8"]
        result = hybridtron("train", tiny, *shared, *overrides)
        assert result.returncode == 0, result.stderr
        printed = " ".join((result.stdout + result.stderr).split())
        without_effect = "parallel.cpu_offload_layers has no effect on a CPU" in printed
        assert without_effect == (name == "interleaved pipeline")
        found[name] = losses(folder)
        assert found[name] == pytest.approx(found["one process"], abs=BOUND), name
        samples.add(json.loads((folder / "summary.json").read_text())["sample"])
    assert len(samples) == 1
    assert len(found["one process"]) == 21  # 20 steps and what is held out
    assert found["one process"][-1] < found["one process"][0] - 0.5


def test_tied_embeddings_are_cut_like_any_other(tiny, hybridtron):
    folders = {}
    for name, more in {"whole": [], "cut": ["parallel.tensor=2", "--nproc", 2]}.items():
        folders[name] = tiny.parent / name
        overrides = [f"folder={folders[name]}", "model.tie_embeddings=true", "train.steps=8"]
        result = hybridtron("train", tiny, *overrides, *more)
        assert result.returncode == 0, result.stderr
    assert losses(folders["cut"]) == pytest.approx(losses(folders["whole"]), abs=BOUND)

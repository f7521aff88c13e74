"""Runs that keep documents apart: losses are those of documents alone, and resumed runs are the uninterrupted ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from hybridtron.config.load import build
from hybridtron.convert import from_hf, to_hf
from hybridtron.data.datasets.indexed_dataset import bin_path, idx_path, write_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.single_process import Model, load
from tests import warm
from tests.conftest import TINY, command, environment

SEQ_LEN, SEED, BATCH, EVALUATED = TINY["data"]["seq_len"], TINY["seed"], 4, 8
DATA = {"tokenizer": "byte", "seq_len": SEQ_LEN, "documents": "isolate"}


def write_tokens(prefix: Path, seed: int) -> None:
    """Documents of 1 to 19 tokens of two letters and the last one, 256."""
    numbers = np.random.default_rng(seed)
    lengths = numbers.integers(1, 20, 150)
    tokens = numbers.integers(97, 99, lengths.sum()).astype(np.uint16)
    tokens[np.cumsum(lengths) - 1] = 256
    tokens.tofile(bin_path(prefix))
    write_index(idx_path(prefix), lengths, np.dtype(np.uint16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of four steps: whole, and resumed after the second."""
    folder = tmp_path_factory.mktemp("isolated")
    for number, split in enumerate(("train", "valid")):
        write_tokens(folder / split, number)
    data = {**DATA, "train": str(folder / "train"), "valid": str(folder / "valid")}
    schedule = {"schedule": {"type": "constant"}}
    for name, commands in {
        "whole": [("train.steps=4",)],
        "resumed": [("train.steps=2",), ("train.steps=4", "--resume")],
    }.items():
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**TINY, **schedule, "data": data, "folder": str(folder / name)}))
        for options in commands:
            arguments = command("train", file, "checkpoint.save_every=2", "checkpoint.keep_last=0", *options)
            warm.run(arguments, env=environment(), check=True, cwd=folder)
    return folder


def rows(run: Path) -> dict[int, dict]:
    return {row["step"]: row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def mean_alone(model: Model, windows: np.ndarray) -> tuple[float, int]:
    """Return the mean loss, by torch's cross-entropy, of documents that each are a sequence by itself; and of how many
    tokens it is the mean. A document ends with the id 256."""
    losses = []
    for window in windows:
        for document in np.split(window, np.flatnonzero(window[:-1] == 256) + 1):
            tokens = torch.from_numpy(document)
            if len(tokens) > 1:
                losses.append(F.cross_entropy(model.logits(tokens[:-1])[0], tokens[1:], reduction="none"))
    return float(torch.cat(losses).double().mean()), sum(map(len, losses))


@torch.no_grad()
def test_the_loss_is_the_mean_over_tokens_of_documents_alone(folder):
    samples = TokenDataset(folder / "train", SEQ_LEN, SEED).samples(np.arange(2 * BATCH, 3 * BATCH))
    expected, counted = mean_alone(load(folder / "whole" / "step_00000002"), samples)
    assert counted < BATCH * SEQ_LEN - 3
    assert rows(folder / "whole")[3]["step_loss"] == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_evaluation_is_the_mean_over_tokens_of_documents_alone(folder, hybridtron):
    windows = TokenDataset(folder / "valid", SEQ_LEN).eval_windows(np.arange(EVALUATED), EVALUATED)
    expected, _ = mean_alone(load(folder / "whole"), windows)
    assert rows(folder / "whole")[4]["valid_loss"] == pytest.approx(expected, abs=1e-6)
    result = hybridtron("eval", folder / "whole", "--json")
    assert json.loads(result.stdout)["loss"] == pytest.approx(expected, abs=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(folder):
    whole, resumed = (rows(folder / name) for name in ("whole", "resumed"))
    assert [(row["step_loss"], row["grad_norm"]) for row in whole.values()] == [
        (row["step_loss"], row["grad_norm"]) for row in resumed.values()
    ]
    parameters, others = (dict(load(folder / name).named_parameters()) for name in ("whole", "resumed"))
    assert all(torch.equal(parameter, others[name]) for name, parameter in parameters.items())


def test_a_run_keeps_its_way_with_documents_on_resume(folder, hybridtron):
    result = hybridtron("train", folder / "whole.yaml", "data.documents=flow", "--resume")
    assert result.returncode == 2
    assert "data.documents = flow: expected isolate" in result.stderr


def test_the_default_leaves_the_identity_as_it_was():
    def identity(**data: str) -> dict:
        return build({**TINY, "data": {**TINY["data"], **data}}, RunConfig).identity()

    assert identity() == identity(documents="flow") != identity(documents="isolate")
    assert "documents" not in identity()["data"]


def test_capacities_of_experts_are_refused_beside_it():
    experts = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 16, "capacity_factor": 1.0}
    model = {**TINY["model"], "blocks": {**TINY["model"]["blocks"], "ffn": experts}}
    with pytest.raises(UserError, match=r"data\.documents.*isolate.*flow.*model\.blocks\.ffn\.capacity_factor"):
        build({**TINY, "model": model, "data": DATA}, RunConfig)


def test_conversion_keeps_it(folder, tmp_path):
    receipt = to_hf(folder / "whole", tmp_path / "hf", architecture="hybridtron", logits="never")
    assert any("position_ids" in note for note in receipt.notes)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["documents"] == "isolate"
    from_hf(tmp_path / "hf", tmp_path / "back", logits="never")
    assert load(tmp_path / "back").config.data.documents == "isolate"

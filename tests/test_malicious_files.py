"""No file that this program opens runs code, or keeps it waiting, whatever a stranger put into it."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from hybridtron.checkpoint_reader import load_parameters
from hybridtron.composer.nas.store import Store
from hybridtron.config.load import load
from hybridtron.data.datasets import indexed_dataset
from hybridtron.data.preprocessing import report
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.errors import UserError
from hybridtron.laws.data.read import read_runs
from hybridtron.mad.scoring.results import opened_for_adding, read_rows
from hybridtron.model.tensors import model_tensors
from hybridtron.training.build import build_engine
from hybridtron.training.callbacks.metrics import read_metrics
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder, read_run
from hybridtron.training.run_folder.resume import Change, find_start, record_changes
from hybridtron.training.run_folder.train_state import STATE_NAME, TrainState, state_content
from tests.checkpoints import reseal
from tests.training.runs import resolved_tiny

CONFIG = resolved_tiny()
PATIENCE = 120  # seconds, of which none should be needed


@pytest.fixture(scope="module")
def engine():
    with process_groups(CONFIG.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        yield build_engine(CONFIG, parallel_context)[0]


@pytest.fixture(scope="module")
def saved(engine, tmp_path_factory):
    """A run folder with one checkpoint."""
    from hybridtron.distributed import checkpoint

    folder = RunFolder(tmp_path_factory.mktemp("saved") / "run")
    assert folder.lock()
    folder.create(CONFIG, {})
    partial = folder.partial_checkpoint(1, 0)
    partial.mkdir()
    state = TrainState(step=1, tokens=128)
    checkpoint.save(partial, engine, {STATE_NAME: state_content(state)})
    folder.finish_checkpoint(partial, state, 0)
    folder.unlock()
    return folder.path


def load_into_engine(folder: Path, engine) -> None:
    from hybridtron.distributed import checkpoint

    checkpoint.load(folder, engine)


STEP = "step_00000001"
# Each file that is opened, and what opens it, given its path and an engine.
FILES: dict[str, Callable[[Path, object], object]] = {
    f"{STEP}/.metadata": lambda file, engine: load_parameters(file.parent, model_tensors(CONFIG.model)),
    f"{STEP}/__0_0.distcp": lambda file, engine: load_parameters(file.parent, model_tensors(CONFIG.model)),
    f"{STEP}/common.pt": lambda file, engine: load_parameters(file.parent, model_tensors(CONFIG.model)),
    f"{STEP}/metadata.json": lambda file, engine: load_parameters(file.parent, model_tensors(CONFIG.model)),
    f"{STEP}/train_state.json": lambda file, engine: read_run(file.parent),
    "config.yaml": lambda file, engine: read_run(file.parent),
    "latest": lambda file, engine: find_start(RunFolder(file.parent), CONFIG, resume=True),
    ".lock": lambda file, engine: RunFolder(file.parent).lock(),
    "environment.json": lambda file, engine: RunFolder(file.parent).read_environment(),
    "summary.json": lambda file, engine: RunFolder(file.parent).read_summary(1),
    "metrics.jsonl": lambda file, engine: read_metrics(file),
    "changes.jsonl": lambda file, engine: record_changes(RunFolder(file.parent), [Change("a", 1, 2)], 1),
    "run.yaml": lambda file, engine: load(file, [], RunConfig),
    "tokenizer.json": lambda file, engine: load_tokenizer(str(file)),
    "corpus/train.idx": lambda file, engine: indexed_dataset.read_index(file.with_suffix("")),
    "corpus/report.json": lambda file, engine: report.read_corpus_report(file.parent),
    "table.csv": lambda file, engine: read_runs([file], ["loss"]),
    "table.parquet": lambda file, engine: read_runs([file], ["loss"]),
    "mad/results.jsonl": lambda file, engine: read_rows(file.parent),
    "mad/.lock": lambda file, engine: opened_for_adding(file.parent).__enter__(),
    "search/evaluations.jsonl": lambda file, engine: Store(file.parent, {}).close(),
}
RESUMED = {name: lambda file, engine: load_into_engine(file.parent, engine) for name in FILES if name.startswith(STEP)}
OPENED = [
    *FILES.items(),
    *((f"{name} on resume", opens) for name, opens in RESUMED.items() if "train_state" not in name),
]


class Attack:
    """A pickle that makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def saved_by(save: Callable[[io.BytesIO], None]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


FORMS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda canary: pickle.dumps(Attack(canary)),
    "old pickle": lambda canary: pickle.dumps(Attack(canary), protocol=0),
    "torch.save": lambda canary: saved_by(lambda stream: torch.save({"weight": Attack(canary)}, stream)),
    "npy": lambda canary: saved_by(lambda stream: np.save(stream, np.array([Attack(canary)], dtype=object))),
    "npz": lambda canary: saved_by(lambda stream: np.savez(stream, lengths=np.array([Attack(canary)], dtype=object))),
    "yaml": lambda canary: f"!!python/object/apply:os.mkdir ['{canary}']".encode(),
    "yaml key": lambda canary: f"name: !!python/object/apply:os.mkdir ['{canary}']".encode(),
    "json": lambda canary: f'{{"py/reduce": [{{"py/function": "os.mkdir"}}, {{"py/tuple": ["{canary}"]}}]}}'.encode(),
}
NOT_PLAIN: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}


@contextlib.contextmanager
def patience():
    """Fail instead of waiting for ever."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(PATIENCE)
    try:
        yield
    except KeyboardInterrupt:
        pytest.fail(f"kept waiting for {PATIENCE} s")
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(("name", "opens"), OPENED, ids=[name for name, _ in OPENED])
def test_what_a_file_holds_is_never_run(name, opens, saved, engine, tmp_path):
    canary = tmp_path / "canary"
    for number, content in enumerate([*FORMS.values(), *NOT_PLAIN.values()]):
        folder = shutil.copytree(saved, tmp_path / str(number))
        file = folder / name.removesuffix(" on resume")
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        if number < len(FORMS):
            file.write_bytes(content(canary))
        else:
            content(file)
        if file.suffix == ".idx":
            file.with_suffix(".bin").write_bytes(b"")
        with patience(), contextlib.suppress(UserError, ValueError, OSError, KeyError):
            opens(file, engine)
        assert not canary.exists(), list(FORMS)[number]


def forged_bytes(folder: Path, content: bytes) -> None:
    """Let the index call every tensor bytes, of its own shape, that lie in a file of the folder."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    for key, entry in list(index.state_dict_metadata.items()):
        forged = BytesStorageMetadata()
        forged.__dict__.update(vars(entry))
        index.state_dict_metadata[key] = forged
        index.storage_data[MetadataIndex(key)] = _StorageInfo("evil.distcp", 0, len(content))
    (folder / "evil.distcp").write_bytes(content)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def misplaced(folder: Path, content: bytes) -> None:
    """Let the index place every tensor in a file outside."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    places = {key: replace(place, relative_path="../x.distcp") for key, place in index.storage_data.items()}
    index.storage_data = places
    shutil.copyfile(folder / "__0_0.distcp", folder.parent / "x.distcp")
    (folder / ".metadata").write_bytes(pickle.dumps(index))


@pytest.mark.parametrize("forge", [forged_bytes, misplaced])
def test_a_forged_index_reaches_no_loader(forge, saved, engine, tmp_path):
    canary = tmp_path / "canary"
    folder = shutil.copytree(saved, tmp_path / "run") / STEP
    load_into_engine(folder, engine)
    forge(folder, saved_by(lambda stream: torch.save(Attack(canary), stream)))
    reseal(folder)
    with pytest.raises(UserError, match=r"BytesStorageMetadata|expected a file in its own folder"):
        load_into_engine(folder, engine)
    with pytest.raises(UserError, match=r"BytesStorageMetadata|expected a file in its own folder"):
        load_parameters(folder, model_tensors(CONFIG.model))
    assert not canary.exists()

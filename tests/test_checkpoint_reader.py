"""Parameters are read from a checkpoint without process groups and without running code from it."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from hybridtron.backends.torch import TorchBackend
from hybridtron.checkpoint_reader import load_parameters
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.errors import UserError
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.safe_index import read_safe_index
from hybridtron.training.build import build_engine
from tests.checkpoints import reseal
from tests.conftest import environment
from tests.training.runs import resolved_tiny

CONFIGS = {name: resolved_tiny(hidden_size=size) for name, size in (("small", 32), ("large", 64))}
PACKED = "layers.0.mixer.in_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of two models, with the parameters that were saved: name -> (folder, parameters)."""
    found = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
            from hybridtron.distributed import checkpoint

            engine, (model,) = build_engine(config, parallel_context)
            checkpoint.save(folder, engine)
            found[name] = (folder, {key: value.detach().clone() for key, value in model.named_parameters()})
    return found


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the small model's checkpoint, to damage."""
    return shutil.copytree(saved["small"][0], tmp_path / "copy")


def specs(name="small"):
    return model_tensors(CONFIGS[name].model)


def rewrite_index(folder, change):
    index = pickle.loads((folder / ".metadata").read_bytes())
    change(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    reseal(folder)


def test_packed_parameters_are_stored_in_parts(saved):
    assert len(specs()[PACKED].parts) > 1
    assert PACKED not in read_safe_index(saved["small"][0]).state_dict_metadata


def test_two_models_live_side_by_side_in_one_process(saved):
    models = {}
    for name, (folder, _) in saved.items():
        models[name] = LanguageModel(CONFIGS[name].model, TorchBackend())
        models[name].load_state_dict(load_parameters(folder, specs(name)))
    tokens = torch.arange(16)[None]
    for name, (_, parameters) in saved.items():
        loaded = dict(models[name].named_parameters())
        assert loaded.keys() == parameters.keys()
        assert all(torch.equal(loaded[key], parameters[key]) for key in parameters)
        assert models[name].logits(tokens).shape == (1, 16, CONFIGS[name].model.vocab_size)


def test_reading_imports_no_megatron_and_starts_no_process_groups(saved):
    code = """
import sys
from pathlib import Path
import torch
from hybridtron.checkpoint_reader import load_parameters
from hybridtron.training.single_process import load
from hybridtron.model.tensors import model_tensors
from tests.training.runs import resolved_tiny
specs = model_tensors(resolved_tiny(hidden_size=32).model)
assert load_parameters(Path(sys.argv[1]), specs).keys() == specs.keys()
assert not torch.distributed.is_initialized()
assert not [name for name in sys.modules if name.split(".")[0] == "megatron"]
"""
    result = subprocess.run(
        [sys.executable, "-c", code, saved["small"][0]], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


def test_parameters_of_another_model_are_refused(saved):
    with pytest.raises(UserError, match=r"parameter embedding\.weight is \d+ x 32 there; expected \d+ x 64, as its"):
        load_parameters(saved["small"][0], specs("large"))
    fewer = {name: spec for name, spec in specs().items() if not name.startswith("layers.3.")}
    with pytest.raises(UserError, match=r"layers\.3\..* there; expected absent"):
        load_parameters(saved["small"][0], fewer)


def test_an_entry_of_bytes_never_counts_as_a_parameter(folder):
    """torch would unpickle it."""
    rewrite_index(folder, lambda index: index.state_dict_metadata.update({"final_norm.weight": BytesStorageMetadata()}))
    with pytest.raises(UserError, match=r"names .*BytesStorageMetadata; expected the shapes and places of tensors"):
        load_parameters(folder, specs())


def test_code_among_the_tensors_is_not_run(folder, tmp_path):
    """Each tensor's bytes are replaced by a pickle that would create a file."""

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "attack.pt").write_bytes(b"")
    torch.save(Attack(), tmp_path / "attack.pt")
    attack = (tmp_path / "attack.pt").read_bytes()
    (folder / "__0_0.distcp").write_bytes(attack)

    def point_at_attack(index):
        for key, info in index.storage_data.items():
            index.storage_data[key] = replace(info, relative_path="__0_0.distcp", offset=0, length=len(attack))

    rewrite_index(folder, point_at_attack)
    with pytest.raises(UserError, match="damaged"):
        load_parameters(folder, specs())
    shutil.copyfile(tmp_path / "attack.pt", folder / "common.pt")
    reseal(folder)
    with pytest.raises(UserError, match="damaged"):
        load_parameters(folder, specs())
    assert not (tmp_path / "owned").exists()


def test_chunks_that_leave_a_hole_are_refused(folder):
    def drop_chunk(index):
        index.state_dict_metadata["final_norm.weight"].chunks.clear()

    rewrite_index(folder, drop_chunk)
    with pytest.raises(UserError, match=r"damaged: the chunks of final_norm\.weight do not add up to its shape 32"):
        load_parameters(folder, specs())


@pytest.mark.parametrize(
    "name", ["__0_0.distcp", ".metadata", "common.pt", "metadata.json", "more.json", "manifest.json"]
)
def test_a_file_that_cannot_be_written_fails_the_save(name, tmp_path, monkeypatch):
    """In all processes, none of which waits for another."""
    from hybridtron.distributed import checkpoint
    from hybridtron.distributed.checkpoint import completing, manifest, writing

    def fails(write):
        def call(path, *arguments):
            if path.name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the file")
            return write(path, *arguments)

        return call

    config = CONFIGS["small"]
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, _ = build_engine(config, parallel_context)
        for module, function in ((writing, "open_to_write"), (completing, "replace_file"), (manifest, "replace_file")):
            monkeypatch.setattr(module, function, fails(getattr(module, function)))
        with pytest.raises(OSError, match=r"^the file: No space left on device$"):
            checkpoint.save(tmp_path, engine, {"more.json": b"{}"})
    assert not (tmp_path / "manifest.json").exists()


def test_another_format_is_refused(folder):
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    reseal(folder)
    with pytest.raises(UserError, match="'zarr'; expected 'torch_dist'"):
        load_parameters(folder, specs())

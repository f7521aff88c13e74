"""A checkpoint's index may name nothing that runs code."""

import contextlib
import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType

from hybridtron.errors import UserError
from hybridtron.safe_index import loading_tensors_only, loading_weights_only, read_safe_index


def write_index(checkpoint, name="tensors.distcp", offset=0, length=9, sizes=((2, 3),), **changes):
    """Write the index of one tensor of shape 2 x 3 in a file of ten bytes."""
    chunks = [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size(size)) for size in sizes]
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2, 3]), chunks)
    place = _StorageInfo(name, offset, length, changes.pop("transforms", None))
    places = {MetadataIndex("weight", torch.Size([0, 0])): place}
    (checkpoint / "tensors.distcp").write_bytes(bytes(10))
    index = Metadata(**{"state_dict_metadata": {"weight": entry}, "storage_data": places} | changes)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def test_what_torch_needs_of_a_sound_index_is_handed_on(checkpoint):
    write_index(checkpoint)
    index = read_safe_index(checkpoint)
    wanted = pickle.loads((checkpoint / ".metadata").read_bytes())
    assert index.state_dict_metadata == wanted.state_dict_metadata
    assert index.storage_data == wanted.storage_data


def test_a_data_file_lies_in_the_folder_of_its_index(checkpoint):
    folder = checkpoint / "step"
    folder.mkdir()
    (folder / "metadata.json").write_text("{}")
    (checkpoint / "outside.distcp").write_bytes(bytes(10))
    (folder / "below").mkdir()
    (folder / "below" / "x.distcp").write_bytes(bytes(10))
    (folder / "link.distcp").symlink_to(checkpoint / "outside.distcp")
    os.mkfifo(folder / "pipe.distcp")
    outside = str(checkpoint / "outside.distcp")
    names = (
        "../outside.distcp",
        outside,
        "below/x.distcp",
        "link.distcp",
        "pipe.distcp",
        "..",
        ".",
        "",
        "gone",
        "a\0b",
    )
    for name in names:
        write_index(folder, name)
        with pytest.raises(UserError, match=r"damaged: .*(expected a file in its own folder|embedded null)"):
            read_safe_index(folder)


def test_a_checkpoint_that_is_a_link_is_followed(checkpoint):
    write_index(checkpoint)
    (checkpoint / "link").symlink_to(checkpoint)
    assert read_safe_index(checkpoint / "link").storage_data


FORGERIES = {
    "bytes": {"state_dict_metadata": {"weight": BytesStorageMetadata()}},
    "no mapping": {"state_dict_metadata": [1]},
    "a number": {"state_dict_metadata": {"weight": 1}},
    "another record": {"state_dict_metadata": {"weight": MetadataIndex("weight")}},
    "key": {"state_dict_metadata": {1: 2}},
    "places": {"storage_data": None},
    "before the file": {"offset": -1},
    "beyond the file": {"length": 11},
    "text as length": {"length": "9"},
    "compressed": {"transforms": ["zstd"]},
    "a hole": {"sizes": [(2, 2)]},
    "chunks that overlap": {"sizes": [(2, 2), (2, 1)]},
    "beyond the shape": {"sizes": [(6, 1)]},
    "fewer axes": {"sizes": [(6,)]},
    "negative": {"sizes": [(-2, -3)]},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_index_of_anything_but_tensors_is_refused(forgery, checkpoint):
    write_index(checkpoint, **FORGERIES[forgery])
    with pytest.raises(UserError, match=r"damaged: |expected the shapes and places of tensors only"):
        read_safe_index(checkpoint)


def test_a_class_cannot_be_changed_by_an_index(checkpoint):
    """BUILD sets attributes of what is on the stack, which may be a class."""
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (checkpoint / ".metadata").write_bytes(b"\x80\x02" + name + b"N}U\x08__hash__Ns\x86b.")
    with pytest.raises(UserError, match="damaged"):
        read_safe_index(checkpoint)
    write_index(checkpoint)
    assert read_safe_index(checkpoint).storage_data


def test_no_loader_runs_code_while_tensors_are_loaded(checkpoint, monkeypatch):
    write_index(checkpoint)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Attack(checkpoint / "owned"), checkpoint / "attack.pt")
    with loading_tensors_only(checkpoint) as index:
        for options in ({}, {"weights_only": False}, {"pickle_module": pickle}):
            with pytest.raises((pickle.UnpicklingError, RuntimeError)):
                torch.load(checkpoint / "attack.pt", **options)
        (checkpoint / ".metadata").write_bytes(pickle.dumps(Attack(checkpoint / "owned")))
        assert FileSystemReader(checkpoint).read_metadata() is index
    assert not (checkpoint / "owned").exists()
    assert FileSystemReader.__init__.__globals__["pickle"] is pickle
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_loading_stays_weights_only_until_the_last_thread_is_done(monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    first, second = loading_weights_only(), loading_weights_only()
    with contextlib.ExitStack() as earlier:
        earlier.enter_context(first)
        with second:
            earlier.close()  # the one that began first ends first, as threads may
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    return tmp_path


def test_foreign_code_is_refused_and_not_run(checkpoint):
    marker = checkpoint / "owned"
    (checkpoint / ".metadata").write_bytes(pickle.dumps({"state": Attack(marker)}))
    with pytest.raises(UserError, match="open"):
        read_safe_index(checkpoint)
    assert not marker.exists()


def test_a_function_of_torch_is_as_foreign(checkpoint):
    (checkpoint / ".metadata").write_bytes(b"ctorch\nload\n(S'x'\ntR.")
    with pytest.raises(UserError, match=r"torch\.load"):
        read_safe_index(checkpoint)


class Borrowed:
    """getattr of something that is no enum."""

    def __reduce__(self):
        return (getattr, (dict, "fromkeys"))


def test_an_attribute_of_anything_but_an_enum_is_foreign(checkpoint):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Borrowed()))
    with pytest.raises(UserError, match="dict"):
        read_safe_index(checkpoint)


class Member:
    def __reduce__(self):
        return (getattr, (WriteItemType, "TENSOR"))


def test_enum_members_are_read_however_python_pickled_them(checkpoint):
    write_index(checkpoint, planner_data=[WriteItemType.TENSOR, Member()])
    assert read_safe_index(checkpoint).state_dict_metadata.keys() == {"weight"}


def test_a_damaged_index_is_named(checkpoint):
    (checkpoint / ".metadata").write_bytes(b"\x80\x04garbage")
    with pytest.raises(UserError, match="damaged"):
        read_safe_index(checkpoint)


def test_a_folder_without_an_index_is_no_checkpoint(checkpoint):
    with pytest.raises(UserError, match="not a checkpoint"):
        read_safe_index(checkpoint)

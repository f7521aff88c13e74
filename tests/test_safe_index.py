"""A checkpoint's index may name nothing that runs code."""

import pickle

import pytest

from hybridtron.errors import UserError
from hybridtron.safe_index import read_safe_index


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


def test_enum_members_are_read_however_python_pickled_them(checkpoint):
    kind = b"ctorch.distributed.checkpoint.planner\nWriteItemType\n"
    (checkpoint / ".metadata").write_bytes(b"cbuiltins\ngetattr\n(" + kind + b"S'TENSOR'\ntR.")
    read_safe_index(checkpoint)


def test_a_damaged_index_is_named(checkpoint):
    (checkpoint / ".metadata").write_bytes(b"\x80\x04garbage")
    with pytest.raises(UserError, match="damaged"):
        read_safe_index(checkpoint)


def test_a_folder_without_an_index_is_no_checkpoint(checkpoint):
    with pytest.raises(UserError, match="not a checkpoint"):
        read_safe_index(checkpoint)

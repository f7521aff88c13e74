from __future__ import annotations

import os

import pytest

from hybridtron.faults import damage


@pytest.mark.parametrize("place", [0.0, 0.37, 0.999])
def test_one_bit_is_flipped(tmp_path, place):
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    damage.flip_bit(file, place)
    assert sum(byte.bit_count() for byte in file.read_bytes()) == 1
    damage.flip_bit(file, place)
    assert file.read_bytes() == bytes(100)


def test_a_file_is_cut(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    damage.truncate(tmp_path / "file", 0.45)
    assert (tmp_path / "file").read_bytes() == b"0123"


def test_a_folder_that_vanished_or_is_read_only_comes_back(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "kept").touch()
    damage.vanish(run)
    run.mkdir()  # by what still writes there
    damage.undo(run)
    assert os.listdir(run) == ["kept"]
    damage.make_read_only(run)
    with pytest.raises(OSError, match=r"denied|permitted"):
        (run / "new").touch()
    damage.undo(run)
    (run / "new").touch()


def test_copies_take_the_places_of_damaged_checkpoints(tmp_path):
    run = tmp_path / "run"
    (run / "step_00000003").mkdir(parents=True)
    (run / "step_00000003" / "file").write_bytes(b"whole")
    damage.copy_checkpoints(run)
    damage.flip_bit(run / "step_00000003" / "file", 0.5)
    assert damage.restore_copies(run)
    assert (run / "step_00000003" / "file").read_bytes() == b"whole"
    assert not damage.restore_copies(run)

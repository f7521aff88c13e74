"""No flipped bit of a checkpoint passes unnoticed."""

import errno
import os
import random
import shutil
import subprocess
import sys
import zlib

import pytest

from hybridtron.distributed import checkpoint
from hybridtron.distributed.checkpoint import manifest
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.errors import UserError
from hybridtron.training.build import build_engine
from hybridtron.training.run_folder.train_state import STATE_NAME, TrainState, state_content
from tests.conftest import environment
from tests.training.runs import resolved_tiny

CONFIG = resolved_tiny(hidden_size=16)
FILES = {"__0_0.distcp", ".metadata", "common.pt", "metadata.json", "train_state.json", "manifest.json"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with process_groups(CONFIG.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, _ = build_engine(CONFIG, parallel_context)
        checkpoint.save(folder, engine, {STATE_NAME: state_content(TrainState(step=1))})
    assert {path.name for path in folder.iterdir()} == FILES
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def flip(file, bit):
    with file.open("r+b") as stream:
        stream.seek(bit // 8)
        (byte,) = stream.read(1)
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def structural_bits(name, entry, size):
    """First and last bit of the file, of each tensor in it and of the frame around its values; all, of small files."""
    if size < 200:
        return range(8 * size)
    edges = {0, size - 1}
    for tensor in entry.tensors[:30] if entry else ():
        edges |= {tensor.start, tensor.start + 703, tensor.start + 704, tensor.start + tensor.length - 1}
    return [8 * byte + bit for byte in sorted(edges) for bit in (0, 7)]


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_flipped_bit_is_noticed(name, folder):
    manifest.verify(folder)
    entry = (manifest.read(folder) or {}).get(name)
    file = folder / name
    size = file.stat().st_size
    draw = random.Random(name)
    bits = [*structural_bits(name, entry, size), *(draw.randrange(8 * size) for _ in range(100))]
    assert len(bits) > 100
    for bit in bits:
        flip(file, bit)
        with pytest.raises(UserError) as error:
            manifest.verify(folder)
        flip(file, bit)
        message = str(error.value)
        assert message.startswith(f"{file}: damaged: ")
        assert "\n" not in message
        for tensor in entry.tensors if entry else ():
            inside = tensor.start <= bit // 8 < tensor.start + tensor.length
            assert (f"tensor {tensor.tensor} at {list(tensor.offsets)} does" in message) == inside
    manifest.verify(folder)


def test_a_missing_or_longer_file_is_noticed(folder):
    for name in FILES - {"metadata.json", "manifest.json"}:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: damaged: is missing$"):
            manifest.verify(folder, "sampled")
        (folder / name).write_bytes(content + b"\0")
        with pytest.raises(UserError, match=rf"{name}: damaged: has \d+ bytes; expected {len(content)}$"):
            manifest.verify(folder, "sampled")
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_file_that_the_system_cannot_read_is_not_damaged(number, folder, monkeypatch):
    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    for function in ("open_to_read", "read_plain"):
        with monkeypatch.context() as patch:
            patch.setattr(manifest, function, fail)
            with pytest.raises(OSError, match=os.strerror(number)) as error:
                manifest.verify(folder)
        assert error.value.errno == number


def test_a_lost_manifest_is_noticed_and_none_is_expected_of_an_old_checkpoint(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: damaged: is missing$"):
        manifest.verify(folder)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "common_backend": "torch"}')
    manifest.verify(folder)


@pytest.mark.parametrize("processes", [1, 3, 8, 100])
def test_processes_share_the_reading_and_one_of_them_finds_the_damage(processes, folder):
    (*_, tensor), file = manifest.read(folder)["__0_0.distcp"].tensors, folder / "__0_0.distcp"
    flip(file, 8 * tensor.start)
    found = []
    for rank in range(processes):
        try:
            manifest.verify(folder, "full", (rank, processes))
        except UserError as error:
            found.append(str(error))
    (message,) = found
    assert tensor.tensor in message


def test_sampled_reads_some_tensors_and_all_small_files_and_none_reads_nothing(folder, monkeypatch):
    read = []
    crc_of = manifest._crc_of
    monkeypatch.setattr(manifest, "_crc_of", lambda file, part: read.append(part) or crc_of(file, part))
    manifest.verify(folder)
    tensors, small = [part for part in read if part.tensor], [part for part in read if not part.tensor]
    assert len(small) == 4
    read.clear()
    manifest.verify(folder, "sampled")
    assert len([part for part in read if part.tensor]) == -(-len(tensors) // 16)
    assert len([part for part in read if not part.tensor]) == 4
    read.clear()
    (folder / "manifest.json").write_bytes(b"")
    manifest.verify(folder, "none")
    assert not read


def test_sampling_processes_read_every_small_file_and_may_draw_every_tensor(monkeypatch):
    """Small files lie between and behind those of 64 processes, some of which hold few tensors."""

    def tensors_of(rank):
        return [manifest.StoredTensor(f"{rank}.{n}", (0,), 100 * n, 100, 0) for n in range(1 + 5 * (rank % 9))]

    files, small = {}, set()
    for rank in range(64):
        files[f"__{rank}_0.distcp"] = manifest.file_of_tensors(tensors_of(rank))
        files[f"small_{rank}"] = manifest.file_of_bytes(b"x" * (3 * rank % 64))
        small.add(f"small_{rank}")
    every = {part.tensor for file in files.values() for part in file.tensors}
    drawn = set()
    for seed in range(100):
        read = []
        for rank in range(64):
            monkeypatch.setattr(manifest, "random", random.Random(f"{seed} {rank}"))
            read += manifest._sample(manifest._share(manifest._parts(files), rank, 64))
        assert sorted(name for name, part in read if not part.tensor) == sorted(small)
        assert len(read) < len(small) + len(every) / 4
        drawn |= {part.tensor for _, part in read if part.tensor}
    assert drawn == every


def test_checksums_of_parts_combine_to_that_of_the_whole(folder):
    draw = random.Random(0)
    for _ in range(100):
        first, second = (draw.randbytes(draw.randrange(300)) for _ in range(2))
        assert manifest.combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
    for name, entry in manifest.read(folder).items():
        assert entry.crc32 == zlib.crc32((folder / name).read_bytes())


def test_a_forged_manifest_reaches_no_file_outside(folder):
    for name in ("../outside", "/etc/hostname", "below/x", ".."):
        manifest.write(folder, {name: manifest.file_of_bytes(b"")})
        with pytest.raises(UserError, match=r"manifest\.json: damaged: names"):
            manifest.verify(folder)
    for entry in ([], {"size": "x"}, {"size": 1, "crc32": "zz"}, {"size": 1, "crc32": "0", "tensors": [{}]}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manifest, "_as_json", lambda file, entry=entry: entry)
            manifest.write(folder, {"common.pt": manifest.file_of_bytes(b"")})
        with pytest.raises(UserError, match=r"manifest\.json: damaged: "):
            manifest.verify(folder)


def test_verifying_needs_neither_torch_nor_megatron(saved):
    code = """
import sys
from pathlib import Path
from hybridtron.distributed.checkpoint import manifest
manifest.verify(Path(sys.argv[1]))
assert not {"torch", "megatron"} & {name.split(".")[0] for name in sys.modules}
"""
    subprocess.run([sys.executable, "-c", code, saved], env=environment(), check=True)

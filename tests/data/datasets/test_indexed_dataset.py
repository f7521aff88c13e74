"""Megatron's files: ours equal megatron-core's own, and damaged ones are told apart."""

import struct
from pathlib import Path

import numpy as np
import pytest

from hybridtron.data.datasets.indexed_dataset import (
    HEADER,
    bin_path,
    fingerprint,
    idx_path,
    read_index,
    token_dtype,
    write_index,
)
from hybridtron.errors import UserError

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
STREAM = [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.fixture
def prefix(tmp_path):
    prefix = tmp_path / "corpus" / "train"
    prefix.parent.mkdir()
    np.array(STREAM, np.uint16).tofile(bin_path(prefix))
    write_index(idx_path(prefix), np.array([len(d) for d in DOCUMENTS]), np.dtype(np.uint16))
    return prefix


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_the_same_bytes_as_megatron_core_writes(dtype, tmp_path):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write_index(tmp_path / "ours.idx", np.array([len(d) for d in DOCUMENTS]), np.dtype(dtype))
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


def test_megatron_core_reads_it(prefix):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    read = IndexedDataset(str(prefix))
    assert [document.tolist() for document in read] == DOCUMENTS
    assert read.document_indices.tolist() == [0, 1, 2, 3]


def test_the_index_gives_the_sizes_and_the_stream(prefix):
    files = read_index(prefix)
    assert (files.num_documents, files.num_tokens, files.dtype) == (3, 9, np.uint16)
    assert files.tokens().tolist() == STREAM


@pytest.mark.parametrize("vocab_size", [257, 65499, 65500, 128256])
def test_the_token_type_is_the_one_megatron_core_chooses(vocab_size):
    from megatron.core.datasets.indexed_dataset import DType

    assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)


def test_missing_files_name_the_nearest_there_is(prefix):
    folder = prefix.parent
    with pytest.raises(UserError, match=rf"no token data at '{folder}/trian'.*nearest there is: '{prefix}'"):
        read_index(folder / "trian")
    with pytest.raises(UserError, match=rf"nearest there is: '{prefix}'"):
        read_index(folder.parent / "corpsu" / "train")
    with pytest.raises(UserError, match=rf"without its suffix: '{prefix}'"):
        read_index(bin_path(prefix))
    bin_path(prefix).unlink()
    with pytest.raises(UserError, match=r"there is no .*train\.bin"):
        read_index(prefix)


def test_a_relative_path_that_is_missing_says_where_was_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"there is no corpus/train\.idx in {tmp_path}"):
        read_index(Path("corpus/train"))


def test_the_fingerprint_is_of_the_content_wherever_it_lies(prefix):
    before = fingerprint(prefix)
    copy = prefix.parent / "copy"
    for path in (bin_path, idx_path):
        path(copy).write_bytes(path(prefix).read_bytes())
    assert fingerprint(copy) == before
    bin_path(copy).write_bytes(np.array(STREAM[::-1], np.uint16).tobytes())
    assert fingerprint(copy) != before
    bin_path(copy).write_bytes(bin_path(prefix).read_bytes())
    write_index(idx_path(copy), np.array([4, 5]), np.dtype(np.uint16))
    assert fingerprint(copy) != before


def test_an_unfinished_preparation_is_recognised(tmp_path):
    (tmp_path / ".partial").mkdir()
    with pytest.raises(UserError, match=r"only partly prepared: run the same .* again"):
        read_index(tmp_path / "train")


def test_a_shortened_or_lengthened_bin_is_held_against_the_index(prefix):
    data = bin_path(prefix).read_bytes()
    bin_path(prefix).write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"train\.bin is truncated: 17 bytes, .* 9 tokens = 18 bytes"):
        read_index(prefix)
    bin_path(prefix).write_bytes(data + b"xx")
    with pytest.raises(UserError, match=r"train\.bin is too long: 20 bytes"):
        read_index(prefix)


def test_every_shortened_index_is_refused(prefix):
    data = idx_path(prefix).read_bytes()
    for size in range(len(data)):
        idx_path(prefix).write_bytes(data[:size])
        with pytest.raises(UserError, match=r"train\.idx is truncated"):
            read_index(prefix)


def test_foreign_and_strange_indices_are_refused(prefix):
    path, data = idx_path(prefix), idx_path(prefix).read_bytes()
    path.write_bytes(b"PK\x03\x04" + data)
    with pytest.raises(UserError, match="not a Megatron index"):
        read_index(prefix)
    path.write_bytes(HEADER.pack(b"MMIDIDX\0\0", 2, 8, 3, 4) + data[HEADER.size :])
    with pytest.raises(UserError, match="version 2"):
        read_index(prefix)
    path.write_bytes(HEADER.pack(b"MMIDIDX\0\0", 1, 7, 3, 4) + data[HEADER.size :])
    with pytest.raises(UserError, match="dtype code 7"):
        read_index(prefix)
    offsets_at = HEADER.size + 3 * 4
    path.write_bytes(data[:offsets_at] + struct.pack("<qqq", 0, 8, 6) + data[offsets_at + 24 :])
    with pytest.raises(UserError, match="do not lie end to end"):
        read_index(prefix)


def test_no_tokens_at_all(tmp_path):
    bin_path(tmp_path / "train").touch()
    write_index(idx_path(tmp_path / "train"), np.array([], np.int32), np.dtype(np.uint16))
    with pytest.raises(UserError, match="holds no tokens"):
        read_index(tmp_path / "train")


@pytest.mark.parametrize("flip", [0x01, 0x40, 0x80, 0xFF])
def test_no_damaged_byte_of_an_index_is_passed_over(prefix, flip):
    path, data = idx_path(prefix), idx_path(prefix).read_bytes()
    inner_marks = range(len(data) - 3 * 8, len(data) - 8, 8)  # 0 1 2 3 may become 0 0 2 3 or 0 1 3 3: empty documents
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
        if flip == 1 and position in inner_marks:
            assert read_index(prefix).num_tokens == len(STREAM)
            continue
        with pytest.raises(UserError, match=r"^[^\n]*train\.(idx|bin)[^\n]*$"):
            read_index(prefix)


def test_a_negative_length_and_wrong_document_marks_are_named(prefix):
    path, data = idx_path(prefix), idx_path(prefix).read_bytes()
    lengths_at, marks_at = HEADER.size, len(data) - 4 * 8
    path.write_bytes(data[:lengths_at] + struct.pack("<iii", 12, -7, 4) + data[lengths_at + 12 :])
    with pytest.raises(UserError, match=r"train\.idx: sequence 1 has the length -7; expected at least 0"):
        read_index(prefix)
    for marks in ((0, 1, 2, 4), (1, 1, 2, 3), (0, 2, 1, 3), (0, -1, 2, 3)):
        path.write_bytes(data[:marks_at] + struct.pack("<qqqq", *marks))
        with pytest.raises(UserError, match=r"document marks do not lead from 0 to its 3 sequences"):
            read_index(prefix)

"""Memory that tensors are read into."""

from __future__ import annotations

import torch

from hybridtron.convert.formats.byte_runs import LARGE, new_tensor, write_at


def test_memory_is_used_again_once_nothing_refers_to_it():
    first = new_tensor((LARGE,), torch.float32)
    place, part, array = first.data_ptr(), first[3:5], first.numpy()
    del first
    assert new_tensor((LARGE,), torch.float32).data_ptr() != place
    array[3:5] = 7
    del array
    assert part.tolist() == [7, 7]
    del part
    taken = [new_tensor((LARGE // 2,), torch.bfloat16) for _ in range(9)]
    assert place in [tensor.data_ptr() for tensor in taken]
    assert len({tensor.data_ptr() for tensor in taken}) == len(taken)


def test_contents_of_any_length_are_written_one_after_another(tmp_path):
    contents = [bytes([1]) * 700_001, memoryview(bytes([2]) * 3), b""]
    with open(tmp_path / "file", "wb") as file:
        write_at(file.fileno(), 5, *contents)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"".join(contents)

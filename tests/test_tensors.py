"""A parameter's declaration: cut over ranks and put together again."""

import pytest
import torch

from hybridtron.tensors import Init, Part, TensorSpec, indivisible

PACKED = (Part("q", 4, 3, "num_heads"), Part("k", 2, 3, "num_kv_heads"), Part("v", 2, 3, "num_kv_heads"))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2])
def test_pieces_of_all_ranks_merge_to_the_whole(axis, ranks):
    shape = (24, 5) if axis == 0 else (5, 24)
    spec = TensorSpec(shape, Init("input"), PACKED, axis=axis)
    full = torch.arange(120.0).reshape(shape)
    shards = [spec.shard(full, rank, ranks) for rank in range(ranks)]
    assert all(tuple(shard.shape) == spec.local_shape(ranks) for shard in shards)
    assert torch.equal(spec.merge(shards), full)


def test_a_rank_holds_its_piece_of_every_part():
    spec = TensorSpec((24,), Init("input"), PACKED)
    assert spec.shard(torch.arange(24), 1, 2).tolist() == [6, 7, 8, 9, 10, 11, 15, 16, 17, 21, 22, 23]


def test_a_tensor_without_parts_is_whole_on_every_rank():
    spec = TensorSpec((6,), Init("ones"))
    assert spec.local_shape(2) == (6,)
    assert torch.equal(spec.shard(torch.arange(6), 1, 2), torch.arange(6))


def test_parts_must_add_up():
    with pytest.raises(AssertionError, match="add up"):
        TensorSpec((23, 5), Init("input"), PACKED)


def test_indivisible_parts_are_named_once_per_key():
    specs = {"qkv": TensorSpec((24, 5), Init("input"), PACKED)}
    assert [part.key for part in indivisible(specs, 4)] == ["num_kv_heads"]
    assert [part.key for part in indivisible(specs, 2)] == []

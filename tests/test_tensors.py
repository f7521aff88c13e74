"""A parameter's declaration: sharded over ranks and assembled."""

import pytest
import torch

from hybridtron.tensors import Init, PackedPart, Shard, Shards, TensorSpec, indivisible

PACKED = (
    PackedPart("q", 4, 3, "num_heads"),
    PackedPart("k", 2, 3, "num_kv_heads"),
    PackedPart("v", 2, 3, "num_kv_heads"),
)


def assembled(spec, full, all_shards):
    whole = torch.full_like(full, -1)
    for shards in all_shards:
        local = spec.shard(full, shards)
        assert tuple(local.shape) == spec.local_shape(shards)
        spec.put(whole, local, shards)
    return whole


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2])
def test_shards_of_all_ranks_make_the_whole(axis, ranks):
    shape = (24, 5) if axis == 0 else (5, 24)
    spec = TensorSpec(shape, Init("input"), PACKED, axis=axis)
    full = torch.arange(120.0).reshape(shape)
    all_shards = [Shards(tensor=Shard(rank, ranks)) for rank in range(ranks)]
    assert torch.equal(assembled(spec, full, all_shards), full)


def test_a_rank_holds_its_shard_of_every_part():
    spec = TensorSpec((24,), Init("input"), PACKED)
    held = spec.shard(torch.arange(24), Shards(tensor=Shard(1, 2)))
    assert held.tolist() == [6, 7, 8, 9, 10, 11, 15, 16, 17, 21, 22, 23]


def test_a_tensor_without_parts_is_whole_on_every_rank():
    spec, second = TensorSpec((6,), Init("ones")), Shards(tensor=Shard(1, 2))
    assert spec.local_shape(second) == (6,)
    assert torch.equal(spec.shard(torch.arange(6), second), torch.arange(6))


def test_experts_are_cut_by_their_number_and_within():
    spec = TensorSpec((4, 6, 2), Init("input"), (PackedPart("gate", 4), PackedPart("up", 2)), axis=1, experts=True)
    full = torch.arange(48.0).reshape(4, 6, 2)
    held = spec.shard(full, Shards(tensor=Shard(1, 2), expert=Shard(1, 2), expert_tensor=Shard(0, 2)))
    assert torch.equal(held, full[2:, [0, 1, 4]])
    all_shards = [Shards(expert=Shard(e, 2), expert_tensor=Shard(t, 2)) for e in range(2) for t in range(2)]
    assert torch.equal(assembled(spec, full, all_shards), full)


def test_parts_must_add_up():
    with pytest.raises(AssertionError, match="add up"):
        TensorSpec((23, 5), Init("input"), PACKED)


def test_parts_have_names_of_their_own():
    with pytest.raises(AssertionError, match="names of their own"):
        TensorSpec((4, 5), Init("input"), (PackedPart("q", 2), PackedPart("q", 2)))


def test_indivisible_parts_are_named_once_per_key():
    specs = {"qkv": TensorSpec((24, 5), Init("input"), PACKED)}
    assert [part.key for part in indivisible(specs, 4)] == ["num_kv_heads"]
    assert [part.key for part in indivisible(specs, 2)] == []


def test_a_parameter_has_elements():
    with pytest.raises(AssertionError, match=r"shape \(0, 4, 4\) has no elements"):
        TensorSpec((0, 4, 4), Init("zeros"))

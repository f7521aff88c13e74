import numpy as np
import pytest

from hybridtron.data.datasets.hashing import mix, name_key, permute


def key(number: int) -> np.ndarray:
    return mix(np.array([number], np.uint64))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permute_visits_every_place_once(size):
    places = permute(np.arange(size), size, np.repeat(key(3), size))
    assert sorted(places.tolist()) == list(range(size))


def test_permute_gives_each_index_the_permutation_of_its_own_key():
    size = 50
    keys = np.array([int(key(1)[0]), int(key(2)[0])] * 25, np.uint64)
    mixed = permute(np.arange(size), size, keys)
    for which in (0, 1):
        alone = permute(np.arange(size), size, np.repeat(keys[which], size))
        assert np.array_equal(mixed[which::2], alone[which::2])


def test_permutations_look_random():
    """Over many keys every index lands in every place about equally often, also in ranges of a few places."""
    for size in (3, 6, 10):
        keys = mix(np.arange(6000, dtype=np.uint64))
        for index in range(size):
            landed = np.bincount(permute(np.full(6000, index), size, keys).astype(int), minlength=size)
            expected = 6000 / size
            chi_square = float(((landed - expected) ** 2 / expected).sum())
            assert chi_square < 45, (size, index, landed)  # p < 1e-5 for 9 degrees of freedom


def test_permute_reaches_far_beyond_memory():
    size = 10**13
    places = permute(np.array([0, 1, size - 1]), size, np.repeat(key(5), 3))
    assert len(set(places.tolist())) == 3
    assert all(0 <= place < size for place in places.tolist())


def test_name_keys_do_not_change_between_runs_and_versions():
    assert name_key("a/b.txt") == 0x2EA56D0C12DD3C55
    assert mix(np.array([0], np.uint64))[0] == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
    assert name_key("undecodable-\udcff.txt") != name_key("undecodable-\udcfe.txt")

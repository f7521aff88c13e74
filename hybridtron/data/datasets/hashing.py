"""Stable pseudo-random numbers from names and indices, without state."""

import hashlib

import numpy as np

FEISTEL_ROUNDS = 6


def name_key(name: str) -> int:
    """Hash a file name to 64 stable bits."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def mix(values: np.ndarray) -> np.ndarray:
    """Mix uint64 values one to one (SplitMix64: Steele, Lea, Flood, 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)  # arithmetic is modulo 2^64, as meant
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Permute `indices` by a pseudo-random permutation of range(size), in constant memory.

    A balanced Feistel network (Luby, Rackoff, 1988) over the next power of four, walked along its cycle until it lands
    inside the range again (Black, Rogaway, 2002). `indices` and `keys`, [n] uint64: each index has the key
    of its own permutation. Returns [n] uint64.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    positions = indices.astype(np.uint64)
    outside = np.ones(len(positions), dtype=bool)
    while outside.any():
        left, right = positions[outside] >> half, positions[outside] & mask
        for number in range(FEISTEL_ROUNDS):
            round_keys = mix(keys[outside] ^ np.uint64(number))
            left, right = right, left ^ (mix(right ^ round_keys) & mask)
        positions[outside] = (left << half) | right
        outside = positions >= size
    return positions

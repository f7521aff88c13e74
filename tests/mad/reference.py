"""The generators of the MAD tasks one token at a time, as the definitions say them: slow, for comparison alone."""

from __future__ import annotations

import random

IGNORE = -100


def recall(setting, training, rng: random.Random):
    noise_size, fraction = setting.get("noise_vocab_size", 0), setting.get("frac_noise", 0.0)
    usable = setting["vocab_size"] - noise_size
    keys, values = range(usable // 2), range(usable // 2, usable)
    pairs = setting["seq_len"] // 2
    spared = rng.randrange(pairs)
    value_of: dict[int, int] = {}
    tokens, targets = [], []
    for slot in range(pairs - 1):
        if slot != spared and rng.random() < fraction:
            tokens += [rng.randrange(usable, usable + noise_size) for _ in range(2)]
            targets += [IGNORE, IGNORE]
            continue
        key = rng.choice(keys)
        known = key in value_of
        value = value_of.setdefault(key, rng.choice(values))
        tokens += [key, value]
        targets += [IGNORE, value if known else IGNORE]
    key = rng.choice(list(value_of))
    tokens += [key, value_of[key]]
    targets += [IGNORE, value_of[key]]
    return tokens[:-1], (tokens if training else targets)[1:]


def fuzzy_recall(setting, training, rng: random.Random):
    length, pad = setting["seq_len"], setting["vocab_size"] - 1
    key_ids, value_ids = range(pad // 2), range(pad // 2, pad)

    def key_motif():
        return tuple(rng.sample(key_ids, rng.choice([1, 2, 3]) if training else 3))

    def value_motif():
        return tuple(rng.sample(value_ids, rng.choice([1, 2, 3])))

    probe_key, probe_value = key_motif(), value_motif()
    probe = len(probe_key) + len(probe_value)
    place = rng.randrange(length - 2 * probe)
    value_of: dict[tuple, tuple] = {}
    tokens, targets = [], []
    while len(tokens) < length - probe - 6:
        if len(tokens) >= place and probe_key not in value_of:
            key, value = probe_key, probe_value
        else:
            key = key_motif()
            value = probe_value if key == probe_key else value_of.get(key) or value_motif()
        targets += [IGNORE] * len(key) + (list(value) if key in value_of else [IGNORE] * len(value))
        tokens += [*key, *value]
        value_of[key] = value
    tokens += [*probe_key, *probe_value]
    targets += [IGNORE] * len(probe_key) + list(probe_value)
    missing = length + 1 - len(tokens)
    tokens, targets = [pad] * missing + tokens, [IGNORE] * missing + targets
    return tokens[:-1], (tokens if training else targets)[1:]


def selective_copying(setting, training, rng: random.Random):
    length, count = setting["seq_len"], setting["num_tokens_to_copy"]
    copy, blank = setting["vocab_size"] - 1, setting["vocab_size"] - 2
    content = [rng.randrange(blank) for _ in range(count)]
    blanks = [rng.randrange(count) for _ in range(length - 2 * count - 1)]
    tokens = []
    for i, token in enumerate(content):
        tokens += [blank] * blanks.count(i) + [token]
    return tokens + [copy] + [blank] * count, [IGNORE] * (length - count) + content


def compression(setting, training, rng: random.Random):
    last = setting["vocab_size"] - 1
    tokens = [rng.randrange(last) for _ in range(setting["seq_len"] - 1)] + [last]
    return tokens, tokens


def memorization(setting, training, rng: random.Random, value_of):
    keys = [rng.randrange((setting["vocab_size"] - 1) // 2) for _ in range(setting["seq_len"] // 2)]
    ask = setting["vocab_size"] - 1
    return [t for key in keys for t in (key, ask)], [t for key in keys for t in (IGNORE, value_of[key])]

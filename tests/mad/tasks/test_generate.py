import random
import time

import numpy as np
import pytest
from scipy.special import chdtrc
from scipy.stats import chi2_contingency

from hybridtron.errors import UserError
from hybridtron.mad import TASKS, generate, settings
from hybridtron.mad.tasks.memorization import facts
from hybridtron.mad.tasks.protocol import setting_text
from tests.mad import reference

EVERY = [(task, setting) for task in TASKS for setting in settings(task)]
RECALL = [name for name in TASKS if name.endswith("in-context-recall")]
every_setting = pytest.mark.parametrize(
    ("task", "setting"), EVERY, ids=[f"{task} {setting_text(task, setting)}" for task, setting in EVERY]
)

LENGTH_AND_VOCABULARY = {  # of the baseline: tokens of an example, ids that it may have
    "in-context-recall": (127, range(16)),
    "noisy-in-context-recall": (127, range(32)),
    "fuzzy-in-context-recall": (128, range(16)),
    "selective-copying": (256, range(16)),
    "compression": (32, range(16)),
    "memorization": (32, range(256)),
}


def scored(targets):
    return targets != -100


def test_the_protocol_has_66_settings_that_change_one_key_each():
    counts = {task: len(settings(task)) for task in TASKS}
    assert counts == {
        "in-context-recall": 11, "noisy-in-context-recall": 14, "fuzzy-in-context-recall": 11,
        "selective-copying": 13, "compression": 11, "memorization": 6,
    }  # fmt: skip
    assert sum(counts.values()) == 66
    for task, setting in EVERY:
        assert sum(setting[key] != value for key, value in TASKS[task].baseline.items()) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_shapes_types_and_ids_of_the_baseline(task):
    length, ids = LENGTH_AND_VOCABULARY[task]
    for split, examples in (("train", TASKS[task].baseline["num_train_examples"]), ("valid", 1280), ("test", 1280)):
        inputs, targets = generate(task, {}, split, seed=3)
        assert inputs.shape == targets.shape == (examples, length)
        assert inputs.dtype == targets.dtype == np.int64
        assert set(np.unique(inputs)) <= set(ids)
        assert set(np.unique(targets)) <= {*ids, -100}


@every_setting
def test_lengths_masks_and_moments_equal_the_reference(task, setting):
    """Means of ten numbers per example, within five standard errors of their difference."""
    rows = 40 if setting["seq_len"] > 300 else 120
    value_of = facts(setting["vocab_size"]) if task == "memorization" else None
    for training in (True, False):
        inputs, targets = generate(task, setting, "train" if training else "test", seed=11, num_examples=800)
        plain = slow_examples(task, setting, training, rows, value_of)
        assert inputs.shape[1] == plain[0].shape[1] == TASKS[task].sequence_length(setting)
        for name, ours, theirs in moments(task, setting, (inputs, targets), plain):
            error = np.concatenate([ours, theirs]).std() * np.sqrt(1 / len(ours) + 1 / rows)
            assert abs(ours.mean() - theirs.mean()) < 5 * error + 1e-9, name


def slow_examples(task, setting, training, rows, value_of):
    rng = random.Random(f"{task}{setting}{training}")
    make = {
        "in-context-recall": reference.recall,
        "noisy-in-context-recall": reference.recall,
        "fuzzy-in-context-recall": reference.fuzzy_recall,
        "selective-copying": reference.selective_copying,
        "compression": reference.compression,
        "memorization": lambda *arguments: reference.memorization(*arguments, value_of),
    }[task]
    inputs, targets = zip(*(make(setting, training, rng) for _ in range(rows)), strict=True)
    return np.array(inputs), np.array(targets)


def moments(task, setting, *examples):
    """Pairs of per-example numbers: scored positions, where they lie, ids, repeats, agreement with what came before."""
    numbers = [per_example(setting, *one) for one in examples]
    for name in numbers[0]:
        yield name, numbers[0][name], numbers[1][name]


def per_example(setting, inputs, targets):
    mask = scored(targets)
    count = mask.sum(1)
    places = np.arange(inputs.shape[1])
    low = setting["vocab_size"] // 4
    following = inputs[:, :-1] * setting["vocab_size"] + inputs[:, 1:]
    return {
        "scored": count.astype(float),
        "mean scored place": (mask * places).sum(1) / np.maximum(count, 1),
        "scored ids": np.where(mask, targets, 0).sum(1) / np.maximum(count, 1),
        "low ids": (inputs < low).mean(1),
        "first id": inputs[:, 0].astype(float),
        "id in the middle": inputs[:, inputs.shape[1] // 2].astype(float),
        "distinct ids": np.array([len(set(row)) for row in inputs.tolist()], float),
        "distinct pairs": np.array([len(set(row)) for row in following.tolist()], float),
        "last input": inputs[:, -1].astype(float),
        "repeats": (inputs[:, 1:] == inputs[:, :-1]).mean(1),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("task", "changed"),
    [(task, {}) for task in TASKS]
    + [(task, {"vocab_size": TASKS[task].sweeps["vocab_size"][-1]}) for task in TASKS]
    + [("noisy-in-context-recall", {"frac_noise": 0.8})],
)
def test_ids_are_uniform_in_every_role(task, changed, training):
    """What is drawn independently for each place or sequence; chi-square against equal counts."""
    setting = TASKS[task].baseline | changed
    inputs, targets = generate(task, setting, "train" if training else "test", seed=6, num_examples=8000)
    found = ROLES[task](setting, inputs, targets)
    for name, (tokens, ids) in found.items():
        assert chance_if_uniform(tokens, ids) > 1e-6, name


def roles_of_recall(setting, inputs, targets):
    noise_ids = setting.get("noise_vocab_size", 0)
    usable = setting["vocab_size"] - noise_ids
    keys, values = range(usable // 2), range(usable // 2, usable)
    pairs = inputs[:, :-1].reshape(len(inputs), -1, 2)  # without the final one
    is_noise = pairs[:, :, 0] >= usable
    first = (~is_noise).argmax(1)
    roles = {
        "key": (pairs[:, :, 0][~is_noise], keys),
        "value of the first key": (pairs[np.arange(len(pairs)), first, 1], values),
        "final key": (inputs[:, -1], keys),
        "final value": (targets[:, -1], values),
    }
    if noise_ids:
        noise = range(usable, usable + noise_ids)
        slots = is_noise.sum(0)
        share = setting["frac_noise"] * (1 - 1 / (pairs.shape[1] + 1))  # one slot in all, drawn, is never noise
        assert np.abs(slots / len(inputs) - share).max() < 5 * np.sqrt(share * (1 - share) / len(inputs))
        roles |= {f"noise {i}": (pairs[:, :, i][is_noise], noise) for i in range(2)}
    return roles


def roles_of_fuzzy_recall(setting, inputs, targets):
    pad = setting["vocab_size"] - 1
    keys, values = range(pad // 2), range(pad // 2, pad)
    backwards = np.concatenate([inputs, targets[:, -1:]], 1)[:, ::-1]
    value_size = (backwards < pad // 2).argmax(1)
    key_size = np.array([(row[n:] >= pad // 2).argmax() for row, n in zip(backwards, value_size, strict=True)])
    rows = np.arange(len(inputs))
    key_sizes = range(1, 4) if (targets[:, 0] >= 0).all() else range(3, 4)  # training, evaluation
    return {
        "size of the final value": (value_size, range(1, 4)),
        "size of the final key": (key_size, key_sizes),
        "first of the final value": (backwards[rows, value_size - 1], values),
        "last of the final value": (backwards[:, 0], values),
        "first of the final key": (backwards[rows, value_size + key_size - 1], keys),
        "last of the final key": (backwards[rows, value_size], keys),
    }


ROLES = {
    "in-context-recall": roles_of_recall,
    "noisy-in-context-recall": roles_of_recall,
    "fuzzy-in-context-recall": roles_of_fuzzy_recall,
    "selective-copying": lambda setting, inputs, targets: {
        "content": (targets[scored(targets)], range(setting["vocab_size"] - 2))
    },
    "compression": lambda setting, inputs, targets: {"content": (inputs[:, :-1], range(setting["vocab_size"] - 1))},
    "memorization": lambda setting, inputs, targets: {"key": (inputs[:, ::2], range((setting["vocab_size"] - 1) // 2))},
}


def chance_if_uniform(tokens, ids):
    """p of Pearson's chi-square; 0 where there is a token that is none of the ids."""
    counts = np.bincount(np.ravel(tokens), minlength=ids.stop)
    if counts.sum() > counts[ids.start : ids.stop].sum():
        return 0.0
    counts = counts[ids.start : ids.stop]
    expected = counts.sum() / len(ids)
    assert expected >= 20
    return 1.0 if len(ids) == 1 else chdtrc(len(ids) - 1, ((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("training", [True, False])
def test_the_probe_of_fuzzy_recall_goes_in_where_the_reference_puts_it(training):
    """Tokens before its first appearance, in eighths of the length; chi-square of two samples."""
    task, setting = "fuzzy-in-context-recall", {**TASKS["fuzzy-in-context-recall"].baseline, "vocab_size": 128}
    ours = generate(task, setting, "train" if training else "test", seed=9, num_examples=8000)
    plain = slow_examples(task, setting, training, 3000, None)
    counts = [np.bincount([where * 8 // 129 for where in probe_places(*one)], minlength=8) for one in (ours, plain)]
    assert min(map(min, counts)) > 20
    assert chi2_contingency(counts).pvalue > 1e-6


def probe_places(inputs, targets):
    for tokens in np.concatenate([inputs, targets[:, -1:]], 1):
        start = len(tokens)
        for low, high in ((63, 127), (0, 63)):  # back over the final value, then over the final key
            while low <= tokens[start - 1] < high:
                start -= 1
        row = tokens.astype(np.uint8).tobytes()
        yield row.index(row[start:]) - (tokens == 127).sum()


@pytest.mark.parametrize(
    ("task", "changed", "expected"),
    [
        ("in-context-recall", {}, 56.0),
        ("in-context-recall", {"vocab_size": 128}, 23.8),
        ("noisy-in-context-recall", {}, 43.6),
        ("noisy-in-context-recall", {"frac_noise": 0.8}, 8.0),
        ("fuzzy-in-context-recall", {}, 4.5),
        ("fuzzy-in-context-recall", {"seq_len": 1024}, 147),
        ("selective-copying", {"num_tokens_to_copy": 96}, 96),
        ("compression", {"seq_len": 64}, 64),
        ("memorization", {}, 16),
    ],
)
def test_scored_positions_per_test_sequence_are_those_measured_on_mad_lab(task, changed, expected):
    _, targets = generate(task, changed, "test", seed=5, num_examples=4000)
    assert scored(targets).sum(1).mean() == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("task", ["in-context-recall", "noisy-in-context-recall"])
def test_every_scored_value_of_recall_is_the_one_its_key_had_before(task):
    inputs, targets = generate(task, {}, "test", seed=1)
    for row, wanted in zip(inputs[:200], targets[:200], strict=True):
        value_of = {}
        tokens = [*row, wanted[-1]]
        for place in range(0, len(tokens), 2):
            key, value = tokens[place], tokens[place + 1]
            target = wanted[place]
            if key >= 16:
                assert task.startswith("noisy")
                assert target == -100
                continue
            assert target == value_of.get(key, -100)
            assert value == value_of.setdefault(key, value)
            assert key < 8 <= value < 16


def test_the_final_key_of_recall_is_uniform_over_the_distinct_keys_shown():
    """Not over their appearances: of keys shown once or twice, either is asked for equally often."""
    inputs, _ = generate("in-context-recall", {"seq_len": 8, "vocab_size": 4}, "test", seed=0, num_examples=40_000)
    keys, final = inputs[:, 0:6:2], inputs[:, 6]
    uneven = (keys.sum(1) % 3) != 0  # one of the two keys twice, the other once
    rarer = np.where(keys.sum(1) == 1, 1, 0)
    assert (final == rarer)[uneven].mean() == pytest.approx(0.5, abs=0.015)


def test_motifs_of_fuzzy_recall_are_uniform_over_ordered_tuples_of_distinct_ids():
    inputs, targets = generate("fuzzy-in-context-recall", {}, "test", seed=2, num_examples=60_000)
    whole = np.concatenate([inputs, targets[:, -1:]], 1)
    lengths = np.array([next(n for n in (1, 2, 3) if row[-n - 1] < 7) for row in whole[:20_000]])
    assert np.bincount(lengths, minlength=4)[1:] / len(lengths) == pytest.approx([1 / 3] * 3, abs=0.015)
    triples = [tuple(row[-3 - n : -n]) for row, n in zip(whole, lengths, strict=False)]
    names, counts = np.unique(triples, axis=0, return_counts=True)
    assert len(names) == 7 * 6 * 5
    assert all(len(set(name)) == 3 and max(name) < 7 for name in names.tolist())
    expected = len(triples) / len(names)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 209) < 5 * np.sqrt(2 * 209)


def test_the_probe_of_fuzzy_recall_has_nearly_always_been_shown():
    inputs, targets = generate("fuzzy-in-context-recall", {"vocab_size": 128}, "test", seed=2)
    found = 0
    for row, wanted in zip(inputs[:300].tolist(), targets[:300].tolist(), strict=True):
        value = [token for token in wanted if token != -100][-next(n for n in (3, 2, 1) if wanted[-n] != -100) :]
        pair = [*row[-len(value) - 2 :][:3], *value]
        text = ",".join(map(str, row[: -len(value) - 2]))
        found += ",".join(map(str, pair)) in text
    assert found > 280


def test_blanks_of_selective_copying_follow_no_last_token_and_precede_each_alike():
    inputs, targets = generate("selective-copying", {}, "test", seed=4)
    content = [row[:240][row[:240] < 14] for row in inputs]
    assert (np.array(content) == targets[:, 240:]).all()
    assert (inputs[:, 238] < 14).all()
    assert (inputs[:, 239] == 15).all()
    assert (inputs[:, 240:] == 14).all()
    first = np.array([np.argmax(row < 14) for row in inputs])  # blanks before the first token: binomial
    assert first.mean() == pytest.approx((256 - 33) / 16, abs=0.5)
    assert first.var() == pytest.approx((256 - 33) * 15 / 256, rel=0.15)


def test_facts_of_memorization_are_a_fixed_map_that_all_splits_and_seeds_share():
    assert len(facts(256)) == 127
    assert len(set(facts(256))) == 127
    assert set(facts(256)) <= set(range(127, 255))
    for split in ("train", "test"):
        for seed in (0, 1):
            inputs, targets = generate("memorization", {}, split, seed)
            assert (targets[:, 1::2] == facts(256)[inputs[:, ::2]]).all()
            assert (inputs[:, 1::2] == 255).all()
            assert (targets[:, ::2] == -100).all()


@pytest.mark.parametrize("task", TASKS)
def test_data_are_a_function_of_the_seed_and_splits_differ(task):
    same = [generate(task, {}, "valid", seed=7)[0] for _ in range(2)]
    assert (same[0] == same[1]).all()
    assert (same[0] != generate(task, {}, "valid", seed=8)[0]).any()
    rows = [{row.tobytes() for row in generate(task, {}, split, seed=7)[0]} for split in ("train", "valid", "test")]
    assert len(set.union(*rows)) == sum(map(len, rows))
    small = {"num_train_examples": 64}
    assert (generate(task, small, "test", seed=7)[0] == generate(task, {}, "test", seed=7)[0]).all()


@pytest.mark.parametrize("task", RECALL)
def test_training_targets_are_the_next_token_everywhere(task):
    inputs, targets = generate(task, {"num_train_examples": 50}, "train", seed=0)
    assert (inputs[:, 1:] == targets[:, :-1]).all()


def test_the_slot_that_noise_spares_may_be_the_final_pair():
    """Two slots before the final pair: each of the three is spared equally often, and two of noise are drawn again."""
    setting = {"seq_len": 6, "frac_noise": 0.8}
    inputs, _ = generate("noisy-in-context-recall", setting, "test", seed=0, num_examples=100_000)
    counts = np.bincount((inputs[:, 0:4:2] >= 16).sum(1), minlength=3)
    none = 2 / 3 * 0.2 + 1 / 3 * 0.2**2
    one = 2 / 3 * 0.8 + 1 / 3 * 2 * 0.8 * 0.2
    share = one / (none + one)
    assert counts[2] == 0
    assert counts[1] / counts.sum() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / counts.sum()))


def test_a_sequence_without_a_single_key_is_drawn_again():
    inputs, _ = generate("noisy-in-context-recall", {"seq_len": 4, "frac_noise": 0.9}, "test", seed=0)
    assert (inputs[:, 0] < 8).all()


@pytest.mark.parametrize(
    ("task", "changed"),
    [
        ("in-context-recall", {"seq_len": 1024}),
        ("noisy-in-context-recall", {"seq_len": 1024}),
        ("fuzzy-in-context-recall", {"vocab_size": 128}),
        ("fuzzy-in-context-recall", {"seq_len": 1024}),
        ("selective-copying", {"seq_len": 1024}),
    ],
)
def test_a_setting_takes_a_few_times_as_long_as_drawing_as_many_numbers(task, changed):
    """On any processor: 1.6 to 7.4 times where it was measured, in seconds of one core."""
    numbers = 14_080 * changed.get("seq_len", 128)
    draw = np.random.default_rng(0)

    def make_all():
        for split in ("train", "test"):
            generate(task, changed, split, seed=0)

    assert any(seconds_of(make_all) < 15 * seconds_of(lambda: draw.standard_normal(numbers)) for _ in range(3))


def seconds_of(action):
    start = time.thread_time()
    action()
    return time.thread_time() - start


@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        ("selective-coping", {}, "task 'selective-coping': expected one of .*nearest: selective-copying"),
        ("compression", {"vocab_sise": 3}, "compression: vocab_sise = 3: expected one of .*nearest: vocab_size"),
        ("compression", {"frac_noise": 0.1}, "frac_noise = 0.1: expected one of"),
        ("compression", {"vocab_size": 16.0}, "vocab_size = 16.0: expected a whole number"),
        ("in-context-recall", {"seq_len": 127}, "seq_len = 127: expected an even length of at least 4 .nearest: 128"),
        ("in-context-recall", {"vocab_size": 1}, "vocab_size = 1: expected at least 2"),
        ("noisy-in-context-recall", {"vocab_size": 17}, "vocab_size = 17: expected at least 18"),
        ("noisy-in-context-recall", {"frac_noise": 1.0}, "frac_noise = 1.0: expected at least 0 and less than 1"),
        ("fuzzy-in-context-recall", {"vocab_size": 6}, "vocab_size = 6: expected at least 7"),
        ("fuzzy-in-context-recall", {"seq_len": 12}, "seq_len = 12: expected from 13"),
        ("selective-copying", {"num_tokens_to_copy": 128}, "num_tokens_to_copy = 128: expected from 1 to 127"),
        ("memorization", {"seq_len": 31}, "seq_len = 31: expected an even length"),
        ("memorization", {"num_train_examples": 0}, "num_train_examples = 0: expected at least 1"),
        ("memorization", {"num_train_examples": 1 << 23}, "num_train_examples = 8388608: expected at most 4194304"),
        ("memorization", {"vocab_size": 65537}, "vocab_size = 65537: expected at most 65536"),
        ("selective-copying", {"seq_len": 65537}, "seq_len = 65537: expected at most 65536"),
        ("in-context-recall", {"vocab_size": 65536}, "num_train_examples = 12800: expected at most 2048 with vocab"),
        ("in-context-recall", {"frac_noise": 0.2}, "frac_noise = 0.2: expected one of"),
        ("in-context-recall", {"noise_vocab_size": 16}, "noise_vocab_size = 16: expected one of"),
        ("in-context-recall", {"noise_vocab_size": False}, "noise_vocab_size = False: expected one of"),
        ("compression", {"num_tokens_to_copy": 16}, "num_tokens_to_copy = 16: expected one of"),
    ],
)
def test_impossible_settings_are_refused(task, setting, message):
    with pytest.raises(UserError, match=message):
        generate(task, setting, "train", seed=0)


@pytest.mark.parametrize("task", TASKS)
def test_keys_that_a_task_lacks_may_say_so(task):
    neutral = {"noise_vocab_size": 0, "frac_noise": 0.0, "num_tokens_to_copy": 0}
    lacking = {key: value for key, value in neutral.items() if key not in TASKS[task].baseline}
    assert lacking
    for ours, plain in zip(generate(task, lacking, "test", 0), generate(task, {}, "test", 0), strict=True):
        assert (ours == plain).all()


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"split 'val': expected one of train, valid, test .nearest: valid"):
        generate("compression", {}, "val", seed=0)

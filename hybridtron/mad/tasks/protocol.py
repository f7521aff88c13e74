"""The six MAD tasks (Poli et al. 2024, arXiv 2403.17844): what each varies, from where, and what it cannot be.

A setting says how hard a task is: `vocab_size`, `seq_len`, `num_train_examples`, and for some tasks more. Those of the
protocol change one key at a time from the task's baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Setting = Mapping[str, int | float]
Array = NDArray[np.int64]
Examples = tuple[Array, Array]  # inputs and targets, each [examples, length]

IGNORE = -100  # a target that is not scored
NUM_TEST_EXAMPLES = 1280  # also of the validation split
LARGEST_MOTIF = 3  # tokens of a key or value in fuzzy recall
LONGEST_FUZZY = 1 << 14  # tokens
LARGEST = {"vocab_size": 1 << 16, "seq_len": 1 << 16}  # 16 bits of a token in fuzzy recall's packed motifs
MOST_ELEMENTS = 1 << 27  # of an array of examples: 1 GiB
NEUTRAL: Setting = {"frac_noise": 0.0, "noise_vocab_size": 0, "num_tokens_to_copy": 0}

Requirement = tuple[str, bool, str]  # key, whether its value is possible, what is expected instead


@dataclass(frozen=True)
class Task:
    """`sweeps` lists, for each key that the protocol changes, its values besides the baseline's."""

    name: str
    baseline: dict[str, int | float]
    sweeps: dict[str, tuple[int | float, ...]]
    requirements: Callable[[dict[str, Any]], list[Requirement]]
    autoencoder: bool = False
    shifted: bool = False  # examples are one token shorter than seq_len

    def sequence_length(self, setting: Setting) -> int:
        """Count the tokens of an example: recall without motifs loses one to the shift from inputs to targets."""
        return int(setting["seq_len"]) - self.shifted


def _at_least(key: str, setting: dict[str, Any], least: int, reason: str = "") -> Requirement:
    return key, setting[key] >= least, f"at least {least}{reason}"


def _even(setting: dict[str, Any], least: int) -> Requirement:
    length = setting["seq_len"]
    nearest = f"(nearest: {max(least, length + 1)})"
    return "seq_len", length % 2 == 0 and length >= least, f"an even length of at least {least} {nearest}"


def _recall(setting: dict[str, Any]) -> list[Requirement]:
    noise, fraction = setting.get("noise_vocab_size", 0), setting.get("frac_noise", 0.0)
    vocab_size = setting["vocab_size"]
    most = MOST_ELEMENTS // vocab_size  # a value is drawn for every key
    return [
        _even(setting, 4),
        _at_least("vocab_size", setting, noise + 2, f", a key and a value beside noise_vocab_size {noise}"),
        ("frac_noise", 0 <= fraction < 1, "at least 0 and less than 1"),
        ("noise_vocab_size", not fraction or noise > 0, f"at least 1 with frac_noise {fraction}"),
        ("num_train_examples", setting["num_train_examples"] <= most, f"at most {most} with vocab_size {vocab_size}"),
    ]


def _fuzzy_recall(setting: dict[str, Any]) -> list[Requirement]:
    least = 4 * LARGEST_MOTIF + 1
    within = least <= setting["seq_len"] <= LONGEST_FUZZY
    ids = f", {LARGEST_MOTIF} key ids, {LARGEST_MOTIF} value ids and the pad"
    return [
        ("seq_len", within, f"from {least}, room for the longest pair twice, to {LONGEST_FUZZY}"),
        _at_least("vocab_size", setting, 2 * LARGEST_MOTIF + 1, ids),
    ]


def _selective_copying(setting: dict[str, Any]) -> list[Requirement]:
    most = (setting["seq_len"] - 1) // 2
    expected = f"from 1 to {most} with seq_len {setting['seq_len']} (nearest: {most})"
    return [
        _at_least("seq_len", setting, 3),
        ("num_tokens_to_copy", 1 <= setting["num_tokens_to_copy"] <= most, expected),
        _at_least("vocab_size", setting, 3, ", a token to copy, the blank and the copy token"),
    ]


def _compression(setting: dict[str, Any]) -> list[Requirement]:
    ids = ", a token and the compression token"
    return [_at_least("seq_len", setting, 2), _at_least("vocab_size", setting, 2, ids)]


def _memorization(setting: dict[str, Any]) -> list[Requirement]:
    return [_even(setting, 2), _at_least("vocab_size", setting, 3, ", a key, a value and the insert token")]


_BASELINE: dict[str, int | float] = {"vocab_size": 16, "seq_len": 128, "num_train_examples": 12800}
_SWEEPS: dict[str, tuple[int | float, ...]] = {
    "vocab_size": (32, 64, 128), "seq_len": (256, 512, 1024), "num_train_examples": (6400, 3200, 1600, 800)
}  # fmt: skip

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("in-context-recall", _BASELINE, _SWEEPS, _recall, shifted=True),
        Task(
            "noisy-in-context-recall",
            _BASELINE | {"vocab_size": 32, "noise_vocab_size": 16, "frac_noise": 0.2},
            _SWEEPS | {"vocab_size": (48, 80, 144), "frac_noise": (0.4, 0.6, 0.8)},
            _recall,
            shifted=True,
        ),
        Task("fuzzy-in-context-recall", _BASELINE, _SWEEPS, _fuzzy_recall),
        Task(
            "selective-copying",
            _BASELINE | {"seq_len": 256, "num_tokens_to_copy": 16},
            _SWEEPS | {"seq_len": (512, 1024), "num_tokens_to_copy": (32, 64, 96)},
            _selective_copying,
        ),
        Task(
            "compression",
            _BASELINE | {"seq_len": 32},
            _SWEEPS | {"seq_len": (64, 128, 256)},
            _compression,
            autoencoder=True,
        ),
        Task(
            "memorization",
            {"vocab_size": 256, "seq_len": 32, "num_train_examples": 256},
            {"vocab_size": (512, 1024, 2048, 4096, 8192)},
            _memorization,
        ),
    )
}


def task(name: str) -> Task:
    """Return the task of this name; raises UserError, with the nearest name, where there is none."""
    if name not in TASKS:
        raise UserError(f"task {name!r}: expected {one_of(name, TASKS)}")
    return TASKS[name]


def settings(name: str) -> list[dict[str, int | float]]:
    """Return all settings of a task in the protocol, the baseline first; 66 over the six tasks."""
    chosen = task(name)
    base = dict(chosen.baseline)
    return [base, *({**base, key: value} for key, values in chosen.sweeps.items() for value in values)]


def complete(name: str, setting: Setting) -> dict[str, int | float]:
    """Return the setting with the baseline's values for the keys it leaves out, in the baseline's order of keys.

    Keys that a task does not have may be given with the value that says so, as mad-lab's settings give them: no noise,
    nothing to copy. They are left out.

    Raises:
        UserError: for an unknown key, a value of the wrong type, and a setting that cannot be generated.
    """
    chosen = task(name)
    if not isinstance(setting, Mapping):
        raise UserError(f"{name}: setting {setting!r}: expected a mapping, {{}} for the baseline")
    whole = dict(chosen.baseline)
    for key, value in setting.items():
        if key in chosen.baseline:
            whole[key] = _checked(name, key, value)
        elif key not in NEUTRAL or isinstance(value, bool) or value != NEUTRAL[key]:
            raise UserError(f"{name}: {key} = {value}: expected {one_of(key, chosen.baseline)}")
    most = MOST_ELEMENTS // int(whole["seq_len"])
    fits = whole["num_train_examples"] <= most
    size = ("num_train_examples", fits, f"at most {most} with seq_len {whole['seq_len']}")
    for key, possible, expected in (*chosen.requirements(whole), size):
        if not possible:
            raise UserError(f"{name}: {key} = {whole[key]}: expected {expected}")
    return whole


def _checked(name: str, key: str, value: int | float) -> int | float:
    """Return the value in the type of the baseline's, if it lies within what any task allows."""
    kind = type(task(name).baseline[key])
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        raise UserError(f"{name}: {key} = {value!r}: expected a {'whole ' if kind is int else ''}number")
    least = 0 if key in ("frac_noise", "noise_vocab_size") else 1
    if value < least:
        raise UserError(f"{name}: {key} = {value}: expected at least {least}")
    if key in LARGEST and value > LARGEST[key]:
        raise UserError(f"{name}: {key} = {value}: expected at most {LARGEST[key]}")
    return kind(value)


def setting_text(name: str, setting: Setting) -> str:
    """Describe what the setting changes from the baseline, such as `vocab_size=32`; else `baseline`."""
    baseline = task(name).baseline
    changed = [f"{key}={value}" for key, value in setting.items() if value != baseline[key]]
    return " ".join(changed) or "baseline"

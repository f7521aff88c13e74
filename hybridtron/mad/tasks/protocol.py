"""The six MAD tasks (Poli et al. 2024, arXiv 2403.17844): what each varies, from where, and what it cannot be.

A setting says how hard a task is: `vocab_size`, `seq_len`, `num_train_examples`, and for some tasks more. Those of the
protocol change one key at a time from the task's baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Literal, get_args

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Setting = Mapping[str, int | float]

IGNORE = -100  # a target that is not scored
NUM_TEST_EXAMPLES = 1280  # also of the validation split
LARGEST_MOTIF = 3  # tokens of a key or value in fuzzy recall
LONGEST_FUZZY = 1 << 14  # tokens
LARGEST = {"vocab_size": 1 << 16, "seq_len": 1 << 16}  # 16 bits of a token in fuzzy recall's packed motifs
MOST_ELEMENTS = 1 << 27  # of an array of examples: 1 GiB
NEUTRAL: Setting = MappingProxyType({"frac_noise": 0.0, "noise_vocab_size": 0, "num_tokens_to_copy": 0})

_SMALLER_TRAINING_SETS = (6400, 3200, 1600, 800)


@dataclass(frozen=True)
class Task:
    """`sweeps` lists, for each key that the protocol changes, its values besides the baseline's."""

    name: str
    baseline: Setting
    sweeps: Mapping[str, tuple[int | float, ...]]
    check: Callable[[dict[str, Any]], tuple[str, str] | None]  # key that is impossible and what is expected instead
    autoencoder: bool = False
    shifted: bool = False  # examples are one token shorter than seq_len

    def sequence_length(self, setting: Setting) -> int:
        """Count the tokens of an example: recall without motifs loses one to the shift from inputs to targets."""
        return int(setting["seq_len"]) - self.shifted


def _recall(setting: dict[str, Any]) -> tuple[str, str] | None:
    noise = setting.get("noise_vocab_size", 0)
    if setting["seq_len"] % 2 or setting["seq_len"] < 4:
        return "seq_len", f"an even length of at least 4 (nearest: {max(4, setting['seq_len'] + 1)})"
    if setting["vocab_size"] < noise + 2:
        return "vocab_size", f"at least {noise + 2}, a key and a value beside noise_vocab_size {noise}"
    fraction = setting.get("frac_noise", 0.0)
    if not 0 <= fraction < 1:
        return "frac_noise", "at least 0 and less than 1"
    if fraction and not noise:
        return "noise_vocab_size", f"at least 1 with frac_noise {fraction}"
    most = MOST_ELEMENTS // setting["vocab_size"]  # a value is drawn for every key
    if setting["num_train_examples"] > most:
        return "num_train_examples", f"at most {most} with vocab_size {setting['vocab_size']}"
    return None


def _fuzzy_recall(setting: dict[str, Any]) -> tuple[str, str] | None:
    least = 4 * LARGEST_MOTIF + 1
    if not least <= setting["seq_len"] <= LONGEST_FUZZY:
        return "seq_len", f"from {least}, room for the longest pair twice, to {LONGEST_FUZZY}"
    least = 2 * LARGEST_MOTIF + 1
    if setting["vocab_size"] < least:
        return "vocab_size", f"at least {least}, {LARGEST_MOTIF} key ids, {LARGEST_MOTIF} value ids and the pad"
    return None


def _selective_copying(setting: dict[str, Any]) -> tuple[str, str] | None:
    longest = (setting["seq_len"] - 1) // 2
    if setting["seq_len"] < 3:
        return "seq_len", "at least 3"
    if not 1 <= setting["num_tokens_to_copy"] <= longest:
        return "num_tokens_to_copy", f"from 1 to {longest} with seq_len {setting['seq_len']} (nearest: {longest})"
    if setting["vocab_size"] < 3:
        return "vocab_size", "at least 3, a token to copy, the blank and the copy token"
    return None


def _compression(setting: dict[str, Any]) -> tuple[str, str] | None:
    if setting["seq_len"] < 2:
        return "seq_len", "at least 2"
    if setting["vocab_size"] < 2:
        return "vocab_size", "at least 2, a token and the compression token"
    return None


def _memorization(setting: dict[str, Any]) -> tuple[str, str] | None:
    if setting["seq_len"] % 2 or setting["seq_len"] < 2:
        return "seq_len", f"an even length of at least 2 (nearest: {max(2, setting['seq_len'] + 1)})"
    if setting["vocab_size"] < 3:
        return "vocab_size", "at least 3, a key, a value and the insert token"
    return None


def _task(name: str, check: Callable[[dict[str, Any]], tuple[str, str] | None], baseline: Setting,
          sweeps: Mapping[str, tuple[int | float, ...]], **kind: bool) -> Task:  # fmt: skip
    return Task(name, MappingProxyType(dict(baseline)), MappingProxyType(dict(sweeps)), check, **kind)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task(
            "in-context-recall",
            _recall,
            {"vocab_size": 16, "seq_len": 128, "num_train_examples": 12800},
            {
                "vocab_size": (32, 64, 128),
                "seq_len": (256, 512, 1024),
                "num_train_examples": _SMALLER_TRAINING_SETS,
            },
            shifted=True,
        ),
        _task(
            "noisy-in-context-recall",
            _recall,
            {"vocab_size": 32, "seq_len": 128, "num_train_examples": 12800, "noise_vocab_size": 16, "frac_noise": 0.2},
            {
                "vocab_size": (48, 80, 144),
                "seq_len": (256, 512, 1024),
                "num_train_examples": _SMALLER_TRAINING_SETS,
                "frac_noise": (0.4, 0.6, 0.8),
            },
            shifted=True,
        ),
        _task(
            "fuzzy-in-context-recall",
            _fuzzy_recall,
            {"vocab_size": 16, "seq_len": 128, "num_train_examples": 12800},
            {
                "vocab_size": (32, 64, 128),
                "seq_len": (256, 512, 1024),
                "num_train_examples": _SMALLER_TRAINING_SETS,
            },
        ),
        _task(
            "selective-copying",
            _selective_copying,
            {"vocab_size": 16, "seq_len": 256, "num_train_examples": 12800, "num_tokens_to_copy": 16},
            {
                "vocab_size": (32, 64, 128),
                "seq_len": (512, 1024),
                "num_train_examples": _SMALLER_TRAINING_SETS,
                "num_tokens_to_copy": (32, 64, 96),
            },
        ),
        _task(
            "compression",
            _compression,
            {"vocab_size": 16, "seq_len": 32, "num_train_examples": 12800},
            {
                "vocab_size": (32, 64, 128),
                "seq_len": (64, 128, 256),
                "num_train_examples": _SMALLER_TRAINING_SETS,
            },
            autoencoder=True,
        ),
        _task(
            "memorization",
            _memorization,
            {"vocab_size": 256, "seq_len": 32, "num_train_examples": 256},
            {"vocab_size": (512, 1024, 2048, 4096, 8192)},
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
    found = chosen.check(whole)
    if not found and whole["num_train_examples"] > most:
        found = "num_train_examples", f"at most {most} with seq_len {whole['seq_len']}"
    if found:
        key, expected = found
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

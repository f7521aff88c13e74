"""Examples from a folder as mad-lab writes it, and as its Zenodo record 10843663 has it.

Each setting is a folder named after its keys, such as `t-CR_vs-16_sl-128_ntr-12800_...`, with `train` and `test` in it,
which hold `inputs.npy` and `targets.npy`. Pickled arrays are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hybridtron.errors import UserError
from hybridtron.mad.tasks.protocol import IGNORE, Array, Setting, complete, setting_text, task

_TASKS = {
    "in-context-recall": "CR",
    "noisy-in-context-recall": "NR",
    "fuzzy-in-context-recall": "FR",
    "selective-copying": "SC",
    "compression": "C",
    "memorization": "M",
}
_KEYS = {
    "vocab_size": "vs",
    "seq_len": "sl",
    "num_train_examples": "ntr",
    "frac_noise": "fn",
    "noise_vocab_size": "nvs",
    "num_tokens_to_copy": "ntc",
}
SPLITS = ("train", "test")


def read_examples(
    data: Path, task_name: str, setting: Setting, split: str, num_examples: int | None = None
) -> tuple[Array, Array]:
    """Read inputs and targets, int64 arrays [examples, length], of a setting; the first `num_examples` of a split.

    `data` has a folder for each setting, or is the folder of this one.

    Raises:
        UserError: where a file is missing or pickled, and where its arrays are not those of the setting.
    """
    whole = complete(task_name, setting)
    folder = _folder(data, task_name, whole) / split
    inputs, targets = (_load(folder / name) for name in ("inputs.npy", "targets.npy"))
    length, vocab_size = task(task_name).sequence_length(whole), int(whole["vocab_size"])
    rows = int(whole["num_train_examples"]) if split == "train" else len(inputs)
    for name, array in (("inputs.npy", inputs), ("targets.npy", targets)):
        if array.shape != (rows, length) or not rows:
            raise UserError(
                f"{folder / name}: has {len(array)} x {array.shape[1]} ids; expected {rows or 1} x {length}"
            )
    inputs, targets = (np.array(array[:num_examples], dtype=np.int64) for array in (inputs, targets))
    for name, array, others in (("inputs.npy", inputs, ()), ("targets.npy", targets, (IGNORE,))):
        wrong = ((array < 0) | (array >= vocab_size)) & ~np.isin(array, others)
        if wrong.any():
            allowed = ", or ".join([f"0 to {vocab_size - 1}", *map(str, others)])
            raise UserError(f"{folder / name}: has the id {array[wrong][0]}; expected {allowed}")
    return inputs, targets


def _folder(data: Path, task_name: str, setting: Setting) -> Path:
    """Return the folder of a setting, by the keys in its name."""
    if not data.is_dir():
        raise UserError(f"data {data}: is no folder")
    wanted = {short: float(setting[key]) for key, short in _KEYS.items() if key in setting}
    is_one = (data / "train").is_dir()
    if is_one and not data.resolve().name.startswith("t-"):
        return data  # its name does not say what it holds
    for folder in [data.resolve()] if is_one else sorted(data.iterdir()):
        pairs = dict(part.partition("-")[::2] for part in folder.name.split("_"))
        if pairs.get("t") == _TASKS[task_name] and all(_number(pairs.get(key)) == wanted[key] for key in wanted):
            return data if is_one else folder
    name = "_".join(
        [f"t-{_TASKS[task_name]}", *(f"{key}-{value:g}".replace(".", "#") for key, value in wanted.items())]
    )
    raise UserError(
        f"data {data}: has no {task_name}, {setting_text(task_name, setting)}; expected a folder {name}_..."
    )


def _number(text: str | None) -> float | None:
    """Return a number as mad-lab writes it in a path, with # for the point."""
    try:
        return None if text is None else float(text.replace("#", "."))
    except ValueError:
        return None


def _load(file: Path) -> Array:
    """Map an array of whole numbers into memory; its size is checked against the file's."""
    if not file.is_file():
        raise UserError(f"{file}: is no file; expected the ids of examples")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: cannot be read ({str(error).splitlines()[0]}); expected an array of ids") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 2:
        raise UserError(f"{file}: expected whole numbers [examples, length]")
    return array

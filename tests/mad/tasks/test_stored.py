"""Examples in folders named as mad-lab names them."""

import pickle

import numpy as np
import pytest

from hybridtron import mad
from hybridtron.errors import UserError
from hybridtron.mad.report.write import conditions
from hybridtron.mad.scoring.aggregate import by_procedure
from hybridtron.mad.tasks.generate import generate
from hybridtron.mad.tasks.stored import read_examples
from hybridtron.mad.training.presets import preset

TASK = "noisy-in-context-recall"
SETTING = {"vocab_size": 8, "noise_vocab_size": 4, "frac_noise": 0.5, "seq_len": 8, "num_train_examples": 16}
NAME = "t-NR_vs-8_sl-8_ntr-16_nte-1280_km-1_vm-1_mq-1_fn-0#5_nvs-4_ntc-0_s-12345"


@pytest.fixture
def data(tmp_path):
    """A folder with one setting, and beside it others that differ in one key."""
    for name in ("t-CR" + NAME[4:], NAME.replace("fn-0#5", "fn-0#25"), NAME.replace("ntr-16", "ntr-8"), "notes"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for split in ("train", "test"):
        folder = tmp_path / "data" / NAME / split
        folder.mkdir(parents=True)
        inputs, targets = generate(TASK, SETTING, split, seed=7)
        np.save(folder / "inputs.npy", inputs)
        np.save(folder / "targets.npy", targets)
    return tmp_path / "data"


def test_a_setting_is_found_by_the_keys_in_its_folder_s_name(data):
    for split in ("train", "test"):
        for given in (data, data / NAME):
            found = read_examples(given, TASK, SETTING, split)
            for array, expected in zip(found, generate(TASK, SETTING, split, seed=7), strict=True):
                np.testing.assert_array_equal(array, expected)
    assert len(read_examples(data, TASK, SETTING, "test", 5)[0]) == 5
    with pytest.raises(
        UserError, match=r"has no .*vocab_size=10.*; expected a folder t-NR_vs-10_sl-8_ntr-16_fn-0#5_nvs-4"
    ):
        read_examples(data, TASK, {**SETTING, "vocab_size": 10}, "train")
    for other in ({**SETTING, "frac_noise": 0.4}, {**SETTING, "vocab_size": 10}):
        with pytest.raises(UserError, match="expected a folder t-NR"):
            read_examples(data / NAME, TASK, other, "train")
    with pytest.raises(UserError, match="nowhere: is no folder"):
        read_examples(data / "nowhere", TASK, SETTING, "train")


def test_a_model_is_trained_and_tested_on_the_folder_s_examples(data, tmp_path):
    short = preset("madlab", max_steps=2, batch_size=8, eval_examples=64, lr=[1e-3], weight_decay=[0.0])
    arguments = {"tasks": TASK, "setting": SETTING, "out": tmp_path / "out"}
    stored = mad.score("mlp", short, data=data, **arguments)
    assert f"examples of {data}" in "\n".join(conditions(by_procedure([stored])))
    rows = {"stored": _row(stored), "generated": _row(mad.score("mlp", short, **arguments))}
    for file in data.glob("*/test/*.npy"):  # another test split, of the same weights
        np.save(file, np.load(file)[64:])
    rows["other test"] = _row(mad.score("mlp", short, data=data, **{**arguments, "out": None}))
    assert len({row["test_loss"] for row in rows.values()}) == 3
    assert rows["other test"]["curve"][0][1] == rows["stored"]["curve"][0][1] != rows["generated"]["curve"][0][1]
    assert rows["stored"]["protocol"] != rows["generated"]["protocol"]


def _row(score):
    ((_, by_seed),) = score.tasks[TASK].best.items()
    return by_seed[0]


def test_data_without_a_split_to_select_on_are_refused_with_other_presets(data):
    with pytest.raises(UserError, match="has no validation split; expected `preset` madlab"):
        mad.score("mlp", "smoke", tasks=TASK, setting=SETTING, data=data)


class Hostile:
    """Raises if it is ever unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def objects(file):
    np.save(file, np.array([[Hostile()]], dtype=object), allow_pickle=True)


def cut(file):
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (objects, "cannot be read"),
        (lambda file: file.write_bytes(pickle.dumps(Hostile())), "cannot be read"),
        (cut, "cannot be read"),
        (lambda file: file.write_bytes(b""), "cannot be read"),
        (lambda file: file.unlink(), "is no file"),
        (lambda file: np.save(file, np.load(file).astype(float)), "expected whole numbers"),
        (lambda file: np.save(file, np.load(file)[0]), "expected whole numbers"),
        (lambda file: np.save(file, np.load(file)[:9]), "has 9 x 7 ids; expected 16 x 7"),
        (lambda file: np.save(file, np.load(file)[:, :5]), "has 16 x 5 ids; expected 16 x 7"),
        (lambda file: np.save(file, np.load(file) + 8), "expected 0 to 7"),
        (lambda file: np.save(file, np.load(file) - 9), "expected 0 to 7"),
    ],
)
@pytest.mark.parametrize("name", ["inputs.npy", "targets.npy"])
def test_files_that_are_not_the_setting_s_are_refused_in_one_line(data, tmp_path, name, damage, message):
    file = data / NAME / "train" / name
    damage(file)
    with pytest.raises(UserError, match=message) as found:
        mad.score("mlp", "madlab", tasks=TASK, setting=SETTING, data=data, out=tmp_path / "out")
    assert str(file) in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()

"""What a user finds when something of a run folder is gone or damaged: one clear line, or a run that goes on."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from hybridtron import checkpoint_reader
from hybridtron.cli.main import main
from hybridtron.distributed.checkpoint import manifest, reading
from hybridtron.training.run_folder import folder as folder_module
from hybridtron.training.run_folder import train_state
from hybridtron.training.run_folder.folder import RunFolder, read_config
from hybridtron.training.run_folder.resume import find_start
from tests import warm
from tests.checkpoints import reseal
from tests.conftest import TINY, command, environment


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """A folder with tiny.yaml and its finished run of eight steps, saved at four and eight."""
    folder = tmp_path_factory.mktemp("damage")
    config = {
        **TINY,
        "folder": "run",
        "data": {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")},
        "train": {**TINY["train"], "steps": 8},
        "checkpoint": {"save_every": 4, "keep_last": 0},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    warm.run(command("train", "tiny.yaml"), env=environment(), cwd=folder, check=True)
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it, to damage."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("hybridtron: error: ")
    assert message.count("\n") == 1
    return message


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES = {
    "tensors cut": ("step_00000008/__0_0.distcp", lambda data: data[: len(data) // 2]),
    "tensors empty": ("step_00000008/__0_0.distcp", lambda data: b""),
    "tensors with a flipped bit": ("step_00000008/__0_0.distcp", lambda data: flipped(data, len(data) // 2)),
    "manifest with a flipped bit": ("step_00000008/manifest.json", lambda data: flipped(data, len(data) // 3)),
    "state with a flipped bit": ("step_00000008/train_state.json", lambda data: flipped(data, data.index(b"1"))),
    "common state cut": ("step_00000008/common.pt", lambda data: data[:100]),
    "index cut": ("step_00000008/.metadata", lambda data: data[:100]),
    "format damaged": ("step_00000008/metadata.json", lambda data: b"{"),
    "config binary": ("config.yaml", lambda data: b"\xff\xfe\x00"),
    "config malformed": ("config.yaml", lambda data: b"name: [1"),
    "latest empty": ("latest", lambda data: b""),
    "latest outside": ("latest", lambda data: b"../../elsewhere/step_00000008\n"),
    "latest names nothing": ("latest", lambda data: b"step_00000099\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage, folder, capsys):
    name, change = DAMAGES[damage]
    file = folder / "run" / name
    file.write_bytes(change(file.read_bytes()))
    parallel_context = "step_00000008" if name.startswith("step") else name
    assert parallel_context in refused(capsys, "eval", "run")


def test_a_run_folder_may_have_braces_in_its_name(folder, capsys):
    (folder / "run").rename("{a}")
    (folder / "{a}" / "step_00000008" / "__0_0.distcp").write_bytes(b"")
    assert "the checkpoint before it is {a}/step_00000004: give that path instead" in refused(capsys, "eval", "{a}")
    assert main(["train", "tiny.yaml", "folder='{a}'", "train.steps=9", "--resume"]) == 0
    assert "; going on from step_00000004\n" in capsys.readouterr().err


def test_a_damaged_checkpoint_names_the_one_before_it(folder, capsys):
    (folder / "run" / "step_00000008" / "__0_0.distcp").write_bytes(b"")
    message = refused(capsys, "eval", "run")
    assert "CheckpointException" not in message
    assert "the checkpoint before it is run/step_00000004: give that path instead" in message
    assert main(["eval", "run/step_00000004"]) == 0


def fails_with(error):
    def fail(*arguments):
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((manifest, "_crc_of"), OSError(errno.EIO, "Input/output error")),
        ((train_state, "read_plain"), OSError(errno.ESTALE, "Stale file handle")),
        ((checkpoint_reader, "read_plain"), OSError(errno.EMFILE, "Too many open files")),
        ((reading, "read_common"), torch.OutOfMemoryError("CUDA out of memory")),
        ((reading, "read_common"), MemoryError()),
        ((reading, "read_common"), RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ],
)
def test_a_checkpoint_that_the_system_cannot_read_stays_where_it_is(place, error, folder, capsys, monkeypatch):
    before = contents(folder / "run")
    resume = ["train", "tiny.yaml", "train.steps=9", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(*place, fails_with(error))
        assert main(resume) == 1
    assert "step_00000008" in capsys.readouterr().err
    assert contents(folder / "run") == before
    assert main(resume) == 0
    assert "resumed from run/step_00000008" in capsys.readouterr().err


def test_a_pointer_that_the_system_cannot_read_is_not_taken_for_a_damaged_one(folder, capsys, monkeypatch):
    (folder / "run" / "latest").write_text("step_00000004\n")
    before = contents(folder / "run")
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "read_plain", fails_with(OSError(errno.EIO, "Input/output error", "run/latest")))
        assert main(["train", "tiny.yaml", "train.steps=9", "--resume"]) == 1
    assert "run/latest: Input/output error" in capsys.readouterr().err
    assert contents(folder / "run") == before


def test_a_refusal_is_no_damage_whatever_the_run_is_called(folder, capsys):
    run = folder / "damaged_run"
    (folder / "run").rename(run)
    (run / "step_00000008" / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    reseal(run / "step_00000008")
    assert "has format 'zarr'" in refused(capsys, "train", "tiny.yaml", f"folder={run}", "train.steps=9", "--resume")
    assert "the checkpoint before it" not in refused(capsys, "eval", "damaged_run")
    assert (run / "step_00000008").is_dir()


CHECKPOINT_DAMAGES = [damage for damage, (file, _) in DAMAGES.items() if file.startswith("step")]


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGES)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(damage, folder, capsys):
    name, change = DAMAGES[damage]
    file = folder / "run" / name
    file.write_bytes(change(file.read_bytes()))
    damaged = file.read_bytes()
    assert main(["train", "tiny.yaml", "train.steps=9", "--resume"]) == 0
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if "going on from" in line]
    assert line.startswith("step_00000008")
    assert ": damaged: " in line
    assert line.endswith("; going on from step_00000004")
    assert "resumed from run/step_00000004 at step 4" in printed
    assert steps(folder) == list(range(1, 10))
    assert names(folder / "run") == ["step_00000004", "step_00000008", "step_00000009"]  # 8 was trained again
    assert (folder / "run" / "damaged" / name).read_bytes() == damaged
    assert (folder / "run" / "latest").read_text() == "step_00000009\n"


def test_several_processes_agree_on_the_newest_whole_checkpoint(folder, hybridtron):
    (folder / "run" / "step_00000008" / "__0_0.distcp").write_bytes(b"")
    shutil.copytree(folder / "run" / "step_00000004", folder / "run" / "step_00000006")
    (folder / "run" / "step_00000006" / "train_state.json").unlink()
    file, folder_of_run = folder / "tiny.yaml", f"folder={folder / 'run'}"
    done = hybridtron("train", file, folder_of_run, "train.steps=9", "--nproc", "2", "--resume")
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ")[0] for line in done.stderr.splitlines() if "going on from step_00000004" in line]
    assert lines == ["step_00000008/__0_0.distcp", "step_00000006/train_state.json"]
    assert names(folder / "run" / "damaged") == ["step_00000006", "step_00000008"]


def test_where_no_checkpoint_is_whole_nothing_is_written(folder, capsys):
    for step in (4, 8):
        (folder / "run" / f"step_0000000{step}" / "__0_0.distcp").write_bytes(b"")
    before = contents(folder / "run")
    message = refused(capsys, "train", "tiny.yaml", "train.steps=9", "--resume")
    assert "run folder run: no checkpoint is whole: step_00000008/__0_0.distcp: damaged: " in message
    assert "; step_00000004/__0_0.distcp: damaged: " in message
    assert contents(folder / "run") == {"run/.lock": b""} | before
    for step in (4, 8):
        shutil.rmtree(folder / "run" / f"step_0000000{step}")
    assert "no checkpoint is whole" in refused(capsys, "train", "tiny.yaml", "train.steps=9", "--resume")


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage.startswith("latest")])
def test_a_damaged_pointer_does_no_harm_to_a_resumed_run(damage, folder, capsys):
    file, content = folder / "run" / "latest", DAMAGES[damage][1](b"")
    file.write_bytes(content)
    assert main(["train", "tiny.yaml", "train.steps=9", "--resume"]) == 0
    note = f"latest: names {content.decode().strip()!r}, which is not there; going on from step_00000008\n"
    assert note in capsys.readouterr().err
    assert steps(folder) == list(range(1, 10))


def test_a_checkpoint_beyond_the_named_one_is_not_taken_for_a_damaged_one(folder, capsys):
    shutil.copytree(folder / "run" / "step_00000004", folder / "run" / "step_00000002")
    state = json.loads((folder / "run" / "step_00000004" / "train_state.json").read_text())
    (folder / "run" / "step_00000002" / "train_state.json").write_text(json.dumps(state | {"step": 2, "tokens": 256}))
    reseal(folder / "run" / "step_00000002")
    (folder / "run" / "latest").write_text("step_00000004\n")
    (folder / "run" / "step_00000004" / ".metadata").write_bytes(b"")
    assert main(["train", "tiny.yaml", "train.steps=5", "--resume"]) == 0
    assert "resumed from run/step_00000002 at step 2" in capsys.readouterr().err
    assert names(folder / "run" / "abandoned") == ["step_00000008"]
    assert names(folder / "run" / "damaged") == ["step_00000004"]


STATE = {"step": 8, "tokens": 1024, "skipped": 0, "skipped_in_a_row": 0}
WRONG_STATES = {
    "cut": '{"step"',
    "a list": "[]",
    "not a number": "NaN",
    "deep": "[" * 100_000,
    "a number of 5000 digits": "9" * 5000,
    "a missing key": json.dumps({"step": 8}),
    "a key more": json.dumps(STATE | {"more": 1}),
    "text": json.dumps(STATE | {"step": "8"}),
    "null": json.dumps(STATE | {"step": None}),
    "true": json.dumps(STATE | {"skipped": True}),
    "a fraction": json.dumps(STATE | {"tokens": 1024.5}),
    "negative": json.dumps(STATE | {"tokens": -1}),
    "infinite": json.dumps(STATE | {"tokens": float("inf")}),
    "another step": json.dumps(STATE | {"step": 7}),
    "more skipped than trained": json.dumps(STATE | {"skipped": 9}),
}


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_state_of_wrong_types_or_of_another_step_is_damaged(wrong, folder, capsys):
    (folder / "run" / "step_00000008" / "train_state.json").write_text(WRONG_STATES[wrong])
    message = refused(capsys, "eval", "run")
    assert "step_00000008/train_state.json: damaged" in message
    assert "step_00000004" in message
    assert len(message) < 500
    start = find_start(RunFolder(folder / "run"), read_config(folder / "run"), resume=True)
    assert start.checkpoint == folder / "run" / "step_00000004"
    (note,) = start.notes
    assert note.startswith("step_00000008/train_state.json: damaged: ")
    assert len(note) < 500


def test_a_link_to_a_checkpoint_is_read_and_never_stops_a_run(folder):
    for step in ("step_00000004", "step_00000008"):
        shutil.move(folder / "run" / step, folder / step)
        (folder / "run" / step).symlink_to(folder / step)
    assert main(["eval", "run"]) == 0
    assert main(["train", "tiny.yaml", "train.steps=9", "checkpoint.keep_last=1", "--resume"]) == 0
    assert [path.name for path in (folder / "run").glob("step_*")] == ["step_00000009"]
    assert (folder / "step_00000004" / ".metadata").is_file()


DRAFTS = ("latest", "config.yaml", "environment.json", "metrics.jsonl", "summary.json", "loss.png")


@pytest.mark.parametrize("name", [".lock", "changes.jsonl", "tensorboard", *(f"{name}.new" for name in DRAFTS)])
def test_nothing_is_written_through_a_link_in_the_folder(name, folder, capsys):
    shutil.rmtree(folder / "run" / "tensorboard")
    for victim in ("victim", "victims/x"):
        (folder / victim).parent.mkdir(exist_ok=True)
        (folder / victim).write_text("precious")
    (folder / "run" / name).unlink(missing_ok=True)
    (folder / "run" / name).symlink_to(folder / ("victims" if name == "tensorboard" else "victim"))
    refused(capsys, "train", "tiny.yaml", "train.steps=9", "--resume")
    assert (folder / "victim").read_text() == "precious"
    assert [path.name for path in (folder / "victims").iterdir()] == ["x"]


def test_a_config_that_is_not_the_checkpoint_s_is_refused(folder, capsys):
    file = folder / "run" / "config.yaml"
    file.write_text(file.read_text().replace("pattern: mamba mlp attn ffn", "pattern: mamba mlp attn"))
    assert "layers.3" in refused(capsys, "eval", "run")
    file.write_text(file.read_text().replace("ffn_hidden_size: 64", "ffn_hidden_size: 32"))
    assert "64" in refused(capsys, "eval", "run")


def test_without_latest_the_last_whole_checkpoint_counts(folder):
    (folder / "run" / "latest").unlink()
    assert main(["train", "tiny.yaml", "train.steps=9", "--resume"]) == 0
    assert steps(folder) == list(range(1, 10))
    assert (folder / "run" / "step_00000004").is_dir()


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("step_"))


def test_checkpoints_beyond_the_one_that_a_run_goes_back_to_are_set_aside(folder, capsys):
    run = folder / "run"
    resume = ["train", "tiny.yaml", "optimizer.lr=1e-4", "--resume"]
    (run / "latest").write_text("step_00000004\n")
    assert main([*resume, "train.steps=5", "checkpoint.keep_last=2"]) == 0
    assert "moved into run/abandoned, since the run goes on from before them: step_00000008" in capsys.readouterr().err
    assert names(run) == ["step_00000004", "step_00000005"]
    assert names(run / "abandoned") == ["step_00000008"]
    (run / "latest").unlink()
    assert main([*resume, "train.steps=8", "checkpoint.save_every=0"]) == 0
    assert "resumed from run/step_00000005 at step 5" in capsys.readouterr().err
    (run / "latest").write_text("step_00000005\n")
    assert main([*resume, "train.steps=6"]) == 0
    assert names(run / "abandoned") == ["step_00000008", "step_00000008.2"]
    assert steps(folder) == [1, 2, 3, 4, 5, 6]
    for moved in (run / "abandoned").iterdir():
        assert (moved / ".metadata").is_file()


def test_an_abandoned_checkpoint_can_be_taken_up_again(folder):
    run = folder / "run"
    (run / "latest").write_text("step_00000004\n")
    assert main(["train", "tiny.yaml", "train.steps=5", "--resume"]) == 0
    shutil.move(run / "abandoned" / "step_00000008", run)
    (run / "latest").write_text("step_00000008\n")
    assert main(["train", "tiny.yaml", "train.steps=9", "--resume"]) == 0
    assert (run / "latest").read_text() == "step_00000009\n"


def test_damaged_rows_of_metrics_cost_only_themselves(folder):
    file = folder / "run" / "metrics.jsonl"
    rows = file.read_text().splitlines()
    rows[3], rows[5] = rows[3][:20], "5"
    file.write_text("\n".join(rows) + "\n")
    assert main(["train", "tiny.yaml", "train.steps=9", "--resume"]) == 0
    assert steps(folder) == [1, 2, 3, 5, 7, 8, 9]


def test_a_finished_run_without_metrics_and_summary_still_ends_with_its_report(folder):
    (folder / "run" / "metrics.jsonl").unlink()
    summary = folder / "run" / "summary.json"
    before = json.loads(summary.read_text())
    summary.unlink()
    rest = contents(folder / "run")
    assert main(["train", "tiny.yaml", "optimizer.lr=1", "--resume"]) == 0
    assert json.loads(summary.read_text())["valid_loss"] == pytest.approx(before["valid_loss"], abs=1e-7)
    assert contents(folder / "run") == rest | {"run/summary.json": summary.read_bytes()}


def test_a_run_folder_in_use_is_refused(folder, capsys):
    with (folder / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process" in refused(capsys, "train", "tiny.yaml", "train.steps=9", "--resume")
    assert steps(folder) == list(range(1, 9))


def test_a_finished_run_is_told_again_and_left_as_it_is(folder, capsys, hybridtron):
    (folder / "run" / "summary.json").write_text(json.dumps({"step": 8, "sample_prompt": "a", "sample": "told"}))
    before = contents(folder / "run")
    assert main(["train", "tiny.yaml", "optimizer.lr=1", "data.train=elsewhere/train", "--resume"]) == 0
    told = capsys.readouterr().err
    assert "no step is left to train" in told
    assert "optimizer.lr 0.003 -> 1.0: not used" in told
    assert "sample after 'a':\ntold" in told
    assert main(["train", "tiny.yaml", "--nproc", "2", "--resume"]) == 0
    assert "told" in capsys.readouterr().err
    assert contents(folder / "run") == before


def contents(run):
    return {str(path.relative_to(run.parent)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_changed_keys_are_told_and_kept(folder, capsys):
    assert main(["train", "tiny.yaml", "optimizer.lr=0.001", "train.steps=9", "--resume"]) == 0
    assert "optimizer.lr 0.003 -> 0.001 from step 9\n" in capsys.readouterr().err
    assert main(["train", "tiny.yaml", "optimizer.lr=0.001", "train.steps=10", "--resume"]) == 0
    assert "optimizer.lr" not in capsys.readouterr().err
    changes = [json.loads(line) for line in (folder / "run" / "changes.jsonl").read_text().splitlines()]
    assert [(change["key"], change["was"], change["now"], change["step"]) for change in changes] == [
        ("train.steps", 8, 9, 9),
        ("optimizer.lr", 0.003, 0.001, 9),
        ("train.steps", 9, 10, 10),
    ]


def test_the_tokens_may_lie_elsewhere_but_must_be_the_same(folder, capsys, corpus, monkeypatch):
    for name in ("train.bin", "train.idx"):
        shutil.copy(corpus / name, folder / name)
    resume = ["train", "tiny.yaml", "data.train=train", "--resume"]
    assert main([*resume, "train.steps=9"]) == 0
    assert f"data.train {corpus / 'train'} -> {folder / 'train'} from step 9" in capsys.readouterr().err
    tokens = np.memmap(folder / "train.bin", np.uint16, "r+")
    tokens[0] = (tokens[0] + 1) % 256
    tokens.flush()
    before = contents(folder / "run")
    message = refused(capsys, *resume, "train.steps=10")
    assert "data.train = train: holds other tokens than the run in run began with" in message
    assert contents(folder / "run") == before
    assert "data.train" in refused(capsys, *resume, "train.steps=10", "--nproc", "2")


CHANGES = {
    "seed": "seed=8",
    "data.seq_len": "data.seq_len=16",
    "train.global_batch_size": "train.global_batch_size=8",
    "precision.format": "precision.format=bf16",
    "optimizer.type": "optimizer.type=muon",
    "model.blocks.mlp.ffn_hidden_size": "model.blocks.mlp.ffn_hidden_size=128",
    "train.steps": "train.steps=6",
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_may_not_change_on_resume(key, folder, capsys):
    assert f"{key} = " in refused(capsys, "train", "tiny.yaml", "schedule.warmup_steps=2", CHANGES[key], "--resume")


def test_the_optimizer_s_settings_may_change_and_do(folder):
    losses = {}
    for name, more in {"same": [], "other": ["optimizer.betas=[0.0, 0.1]", "optimizer.eps=1.0"]}.items():
        shutil.copytree(folder / "run", folder / name)
        changed = ["train.steps=11", f"folder={name}", *more, "--resume"]
        assert main(["train", "tiny.yaml", *changed]) == 0
        rows = (folder / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["loss"] for row in rows]
    assert losses["same"][:9] == losses["other"][:9]
    assert losses["same"][9:] != losses["other"][9:]


def test_tokens_of_another_tokenizer_are_refused(folder, capsys, corpus, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(["the attention layer of a model"] * 5, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    change = [f"data.tokenizer={tmp_path / 'tokenizer.json'}", "folder=new"]
    assert "tokenizer" in refused(capsys, "train", "tiny.yaml", *change)


def test_evaluating_needs_no_training_data(folder, capsys):
    file = folder / "run" / "config.yaml"
    text = file.read_text()
    train = next(line for line in text.splitlines() if line.strip().startswith("train: ") and "/" in line)
    file.write_text(text.replace(train, "  train: gone/train"))
    assert main(["eval", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] > 0


@pytest.mark.parametrize(
    "override",
    [
        "model.blocks.mamba.expand=1e308",
        "train.steps=1" + "0" * 400,
        'data.train="a\\0b"',
        "data.tokenizer=" + "a" * 5000,
        "folder=" + "a/" * 3000,
    ],
)
def test_huge_numbers_nuls_and_long_names_are_one_short_line(override, folder, capsys):
    assert len(refused(capsys, "train", "tiny.yaml", override)) < 1000


WRONG = ["text", [1], {"a": 1}, True, float("nan"), 10**400]


def test_a_value_of_the_wrong_type_in_a_summary_costs_itself_alone(folder, capsys):
    file = folder / "run" / "summary.json"
    summary = json.loads(file.read_text())
    for wrong in WRONG:
        for key in ("valid_bits_per_byte", "bigram_bits_per_byte"):
            file.write_text(json.dumps(summary | {key: wrong}))
            assert main(["train", "tiny.yaml", "--resume"]) == 0
            assert "no step is left to train" in capsys.readouterr().err
        file.write_text(json.dumps(summary | {"valid_loss": wrong}))
        refused(capsys, "laws", "fit", "run")


def test_values_of_the_wrong_type_in_the_other_files_cost_themselves_alone(folder):
    run = folder / "run"
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"tokens": 10**400}))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "tokens", "loss", "valid_loss", "lr", "time")
    damaged = [row | {key: wrong} for row, key, wrong in zip(rows, keys, WRONG, strict=False)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*damaged, *rows[6:]]))
    starts = [{"event": "start", "attempt": 1, "time": wrong, "step": wrong} for wrong in WRONG]
    (run / "attempts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    assert main(["train", "tiny.yaml", "train.steps=9", "--resume"]) == 0
    assert steps(folder) == [7, 8, 9]
    assert main(["describe", "run"]) == main(["eval", "run"]) == 0


@pytest.mark.parametrize("key", ["data.train", "data.valid", "data.tokenizer"])
def test_a_path_that_leads_to_no_file_is_one_line(key, folder, capsys, corpus):
    for path in (".", "..", "/", "''", "run", "...", "a/.."):
        refused(capsys, "train", "tiny.yaml", f"{key}={path}", "folder=new")
    if key != "data.tokenizer":
        message = refused(capsys, "train", "tiny.yaml", f"{key}={corpus}", "folder=new")
        assert f"it is a folder: give the path of tokens in it without their suffix: '{corpus}/train'" in message

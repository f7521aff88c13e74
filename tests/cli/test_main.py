"""The command line: help at once, and bad input ends with one clear line, exit code 2 and nothing written."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from hybridtron import __version__
from hybridtron.cli.arguments import ArgumentParser, naming_options
from hybridtron.cli.main import main
from hybridtron.cli.train import require_devices
from hybridtron.errors import UserError
from tests.conftest import command, environment


@pytest.fixture
def refused(tiny, capsys, monkeypatch):
    """Train with bad input; returns the message after checking how it was refused."""
    monkeypatch.chdir(tiny.parent)

    def refuse(*arguments: object) -> str:
        before = snapshot(tiny.parent)
        assert main(["train", *map(str, arguments or [tiny])]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("hybridtron: error: ")
        assert printed.err.endswith("\n")
        assert snapshot(tiny.parent) == before
        return printed.err.removeprefix("hybridtron: error: ").removesuffix("\n")

    return refuse


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is given on the command line, and what the one line must name: the key, the value, what was expected.
SHORTER = "schedule={type: wsd, warmup_steps: 5, decay_steps: 10}"
ONE_LINE = {
    "unknown key": (["model.hiden_size=64"], ["model.hiden_size", "unknown key", "nearest: hidden_size"]),
    "unknown key of a block": (["model.blocks.attn.num_hed=2"], ["num_hed", "unknown key", "nearest: num_heads"]),
    "wrong type": (["train.steps=many"], ["train.steps", "many", "whole number"]),
    "number for text": (["name=3"], ["name", "3", "text"]),
    "value out of bounds": (["train.steps=0"], ["train.steps", "0", "at least 1"]),
    "unknown choice": (
        ["schedule.type=cosin"],
        ["schedule.type", "cosin", "cosine, wsd, power, constant", "nearest: cosine"],
    ),
    "unknown primitive": (["model.blocks.attn.type=atention"], ["atention", "mamba2", "nearest: attention"]),
    "heads that do not divide": (["model.blocks.attn.num_heads=5"], ["num_heads", "5", "hidden_size 32", "4, 8"]),
    "kv heads that do not divide": (["model.blocks.attn.num_kv_heads=3"], ["num_kv_heads", "3", "num_heads 4", "2, 4"]),
    "state heads that do not divide": (["model.blocks.mamba.head_dim=24"], ["head_dim", "24", "64", "16, 32"]),
    "groups that do not divide": (["model.blocks.mamba.num_groups=3"], ["num_groups", "3", "2, 4"]),
    "portions that do not divide": (
        ["train.micro_batch_size=3"],
        ["train.micro_batch_size", "3", "global_batch_size 4"],
    ),
    "sequence longer than the data": (["data.seq_len=1000000"], ["seq_len", "1000000"]),
    "missing tokens": (["data.train=nowhere/train"], ["nowhere/train"]),
    "missing tokenizer": (["data.tokenizer=nowhere.json"], ["nowhere.json"]),
    "vocabulary below the tokenizer's": (["model.vocab_size=200"], ["model.vocab_size", "200", "257"]),
    "no such layout": (["parallel.tensor=3"], ["parallel.tensor", "3"]),
    "one process for two": (["parallel.tensor=2"], ["--nproc", "1", "parallel.tensor 2", "nearest: 2"]),
    "three processes for two": (["parallel.tensor=2", "--nproc", "3"], ["--nproc", "3", "nearest: 2 or 4"]),
    "batch that does not divide": (["--nproc", "3"], ["train.global_batch_size", "4", "3"]),
    "no processes": (["--nproc", "0"], ["--nproc", "0", "at least 1"]),
    "what the optimizer is": (
        ["optimizer.type=adam"],
        ["optimizer.type", "adam", "expected one of adamw, muon", "nearest: adamw"],
    ),
    "what the model is": (["model.name=gpt"], ["model.name", "unknown key", "expected one of hidden_size,"]),
    "a type in place of its mapping": (
        ["model.residual=hyper_connection"],
        ["model.residual = 'hyper_connection': expected a mapping, such as {type: hyper_connections}"],
    ),
    "decay longer than the run": (["schedule.type=wsd"], ["schedule.decay_steps", "0", "wsd"]),
    "a model that no memory holds": (
        ["model.hidden_size=1000000000000"],
        ["model.hidden_size = 1000000000000", "parameters", "GB of this machine"],
    ),
    "a batch that no memory holds": (
        ["train.global_batch_size=1000000000000"],
        ["train.global_batch_size = 1000000000000", "GB of this machine"],
    ),
    "the same with processes": (["model.hidden_size=1000000000000", "--nproc", "2"], ["model.hidden_size"]),
    "run shorter than its schedule": (
        ["schedule.type=wsd", "schedule.warmup_steps=20", "schedule.decay_steps=40", "train.steps=30"],
        ["schedule.decay_steps = 40", "train.steps 30", f"such as {SHORTER!r}"],
    ),
    "no place for a run": (["folder=/proc/run"], ["run folder /proc/run", "No such file"]),
    "relative path": (["data.train=nowhere/train"], ["there is no nowhere/train.idx in /"]),
    "malformed override": (["train.steps"], ["train.steps"]),
}


@pytest.mark.parametrize("case", ONE_LINE)
def test_bad_input(case, tiny, refused):
    arguments, named = ONE_LINE[case]
    message = refused(tiny, *arguments)
    assert "\n" not in message
    for words in named:
        assert words in message, message


def test_the_one_override_that_is_named_makes_a_run_short_enough(tiny, capsys):
    long = ["schedule.type=wsd", "schedule.warmup_steps=20", "schedule.decay_steps=40", "schedule.min_lr_ratio=0.2"]
    assert main(["train", str(tiny), *long, "train.steps=30", "--print"]) == 2
    override = capsys.readouterr().err.split("'")[1]
    assert main(["train", str(tiny), *long, "train.steps=30", override, "--print"]) == 0
    printed = capsys.readouterr().out
    for words in ("warmup_steps: 5", "decay_steps: 10", "min_lr_ratio: 0.2"):
        assert words in printed


def test_nearest_verb_of_search(capsys):
    assert main(["search", "tel", "search.yaml"]) == 2
    assert "tel: no such file; expected a config, or one of ask, check, tell, transfer (nearest: tell)" in (
        capsys.readouterr().err
    )


def test_nearest_verb_of_laws(capsys):
    assert main(["laws", "fti"]) == 2
    assert "(nearest: fit)" in capsys.readouterr().err


PATTERNS = {
    "empty": ("", None),
    "unclosed group": ("2*(mamba mlp", "("),
    "unknown block": ("mamba atn mlp", "a"),
    "repetition of nothing": ("mamba 3*", None),
    "empty stage": ("mamba | | mlp", "|"),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_bad_pattern_with_a_caret_under_the_place(case, tiny, refused):
    pattern, _ = PATTERNS[case]
    lines = refused(tiny, f"model.pattern='{pattern}'").splitlines()
    assert lines[0].startswith("model.pattern")
    if pattern:
        assert lines[1].strip() == pattern
        assert lines[2].strip() == "^"
        column = lines[2].index("^") - (len(lines[1]) - len(lines[1].lstrip()))
        assert 0 <= column <= len(pattern)
    if case == "unknown block":
        assert column == pattern.index("atn")
        assert "nearest: attn" in lines[0]


def test_missing_config_names_the_nearest(tiny, refused):
    assert "tiny.yaml" in refused(tiny.parent / "tinny.yaml")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_and_truncated_token_files(suffix, tiny, corpus, refused):
    for name in ("train.bin", "train.idx"):
        (tiny.parent / name).write_bytes((corpus / name).read_bytes())
    damaged = tiny.parent / f"train{suffix}"
    whole = damaged.read_bytes()
    prefix = tiny.parent / "train"
    damaged.write_bytes(whole[: len(whole) // 2])
    assert f"train{suffix}" in refused(tiny, f"data.train={prefix}")
    damaged.unlink()
    assert f"train{suffix}" in refused(tiny, f"data.train={prefix}")


def test_a_run_folder_that_exists_is_refused(tiny, refused):
    (tiny.parent / "run").mkdir()
    (tiny.parent / "run" / "notes.txt").write_text("mine")
    message = refused(tiny)
    assert "run" in message
    assert "--resume" in message


def test_blocks_that_are_not_defined(tiny, refused):
    assert "model.blocks defines none" in refused(tiny, "model.blocks={}").splitlines()[0]


def test_missing_keys_share_a_line(tiny, refused):
    (tiny.parent / "empty.yaml").touch()
    message = refused(tiny.parent / "empty.yaml")
    assert message.startswith("required keys are missing: name, model, data, train, optimizer (in ")
    assert "\n" not in message


def test_processes_share_no_gpu():
    require_devices(3, gpus=None)
    require_devices(2, gpus=2)
    with pytest.raises(UserError, match="nproc = 3: expected at most 2"):
        require_devices(3, gpus=2)


ARGUMENTS = {
    "no verb": ([], "required: VERB (see hybridtron --help)"),
    "unknown verb": (["trian"], "invalid choice: 'trian': expected one of train, launch, eval"),
    "nearest verb": (["trian"], "(nearest: train)"),
    "verb of another verb": (["fit", "parametric"], "invalid choice: 'fit': expected `laws fit`"),
    "no config": (["train"], "required: CONFIG (see hybridtron train --help)"),
    "unknown option": (["train", "a.yaml", "--reusme"], "unrecognized arguments: --reusme (nearest: --resume)"),
    "beginning of an option": (["train", "a.yaml", "--resum"], "unrecognized arguments: --resum (nearest: --resume)"),
    "misspelt and needed": (
        ["launch", "a.yaml", "--lauch", "b.yaml"],
        "required: --launch; unrecognized: --lauch (nearest: --launch)",
    ),
    "one of several, misspelt": (
        ["mad", "run", "--layer", "mlp"],
        "is required; unrecognized: --layer (nearest: --layers)",
    ),
    "option of Python's name": (["generate", "a", "--max-tokens", "3"], "--max-tokens 3 (nearest: --tokens)"),
    "no number": (["train", "a.yaml", "--nproc", "two"], "argument --nproc: invalid int value: 'two'"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments_are_one_line_too(case, capsys):
    arguments, named = ARGUMENTS[case]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("hybridtron: error: ")
    assert named in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seeds = 0: expected at least 1", "--seeds = 0: expected at least 1"),
        ("max_tokens = -1: expected at least 0", "--tokens = -1: expected at least 0"),
        ("run: exists; use seeds or resume=True", "run: exists; use seeds or --resume"),
        ("a.md: unknown suffix (text_suffixes names others)", "a.md: unknown suffix (--text-suffixes names others)"),
        ("run: exists; `seeds` or `tokens` name another", "run: exists; --seeds or `tokens` name another"),
        ("train.seeds = 0 and text_suffixes/a", "train.seeds = 0 and text_suffixes/a"),
        ("seeds.txt: no such file", "seeds.txt: no such file"),
        ("config = 3: is positional", "config = 3: is positional"),
    ],
)
def test_errors_name_the_options_of_their_verb(text, expected):
    parser = ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("-s", "--seeds")
    parser.add_argument("--tokens", dest="max_tokens")
    parser.add_argument("--text-suffixes")
    parser.add_argument("--resume", action="store_true")
    with pytest.raises(UserError) as raised, naming_options(parser, Namespace()):
        raise UserError(text)
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.csv: no such file", "--table a.csv: no such file"),
        ("a.csv/x: no such file", "--table a.csv/x: no such file"),
        ("unknown block 'mlpp' at column 1", "--pattern: unknown block 'mlpp' at column 1"),
        ("override 'x': expected key=value", "--set: override 'x': expected key=value"),
        ("--pattern = mlpp: 'a.csv'", "--pattern = mlpp: 'a.csv'"),
        ("a.csv2: no such file", "a.csv2: no such file"),
        ("'auto': no such device", "'auto': no such device"),  # the default, which nobody typed
        ("7: no such layer", "7: no such layer"),
        ("both: no such run", "both: no such run"),  # given as the run too
    ],
)
def test_errors_about_the_value_of_an_option_name_it(text, expected):
    parser = ArgumentParser()
    parser.add_argument("--table", type=Path)
    parser.add_argument("--pattern")
    parser.add_argument("--set", nargs="+")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--out")
    parser.add_argument("run", type=Path)
    options = ["--table", "a.csv", "--pattern", "mlpp", "--layer", "7", "--out", "both"]
    given = parser.parse_args(["both", *options, "--set", "y=1", "x"])
    with pytest.raises(UserError) as raised, naming_options(parser, given):
        raise UserError(text)
    assert str(raised.value) == expected


def test_a_file_that_cannot_be_read_is_named_with_its_option(tiny, capsys):
    assert main(["plan", str(tiny), "--gpus", "2", "--table", "none.csv"]) == 2
    assert capsys.readouterr().err == "hybridtron: error: --table none.csv: No such file or directory\n"


def test_version_and_defaults(capsys):
    for arguments, expected in ((["--version"], f"hybridtron {__version__}\n"), (["generate", "--help"], "(0.8)")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out


def test_lines_do_not_end_in_blanks(tiny, capsys):
    assert main(["describe", str(tiny)]) == 0
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20
    assert all(line == line.rstrip() for line in lines)


def test_eval_and_generate_name_what_is_missing(tmp_path, capsys):
    for arguments in (["eval", str(tmp_path / "none")], ["generate", str(tmp_path), "--prompt", "a"]):
        assert main(arguments) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_print_shows_the_resolved_config_and_writes_nothing(tiny, capsys):
    before = snapshot(tiny.parent)
    assert main(["train", str(tiny), "train.steps=7", "--print"]) == 0
    shown = capsys.readouterr().out
    assert "steps: 7" in shown
    assert "vocab_size: 320" in shown
    assert snapshot(tiny.parent) == before


def test_help_needs_no_heavy_import():
    script = (
        "import sys; from hybridtron.cli.main import build_parser; build_parser().format_help(); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "pydantic", "numpy", "rich", "megatron"} & set(loaded)


def test_help_lists_the_verbs():
    printed = subprocess.run(command("--help"), env=environment(), capture_output=True, text=True, check=True).stdout
    assert all(verb in printed for verb in ("train", "eval", "generate", "describe", "doctor"))

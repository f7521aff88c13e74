"""What a run says of its keys before the first step."""

from hybridtron.cli.main import main


def test_a_run_says_that_compiling_takes_long_and_is_slower_on_a_cpu(tiny, capsys, monkeypatch):
    monkeypatch.setattr("hybridtron.training.loop.compile_layers", lambda *_: None)
    assert main(["train", str(tiny), "train.compile=true", "train.steps=1", "schedule.warmup_steps=1"]) == 0
    printed = capsys.readouterr().err
    assert (
        printed.count("train.compile: the first step compiles the layers, which may take minutes; on a CPU most ") == 1
    )

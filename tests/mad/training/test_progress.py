import os
import pty
import re
import subprocess

from hybridtron.mad.training.progress import SuiteProgress
from hybridtron.mad.training.suite import Progress, Steps, Unit
from tests import warm
from tests.conftest import command, environment
from tests.mad.small import row

UNIT = Unit("compression", {"vocab_size": 32, "seq_len": 32, "num_train_examples": 12800}, (0,))


def test_without_a_terminal_steps_are_lines_now_and_then(capsys):
    often, seldom = SuiteProgress("micro", seconds_between_lines=0), SuiteProgress("micro", seconds_between_lines=3600)
    for view in (often, seldom):
        view.steps(UNIT, Steps(100, 2000))
        view.began = {name: (at - 60, steps) for name, (at, steps) in view.began.items()}  # 100 steps a minute
        view.steps(UNIT, Steps(200, 2000, 0.3125))
        view.close()
    assert capsys.readouterr().err.splitlines() == [
        "compression  vocab_size=32  step 100/2000",
        "compression  vocab_size=32  step 200/2000  31.2 %  at most 18.0 min left",
    ]


def test_a_setting_that_is_done_is_a_line_with_its_best_cell(capsys):
    rows = [row(select_micro=0.4), row(lr=5e-4, select_micro=0.6, test_micro=0.625)]
    SuiteProgress("micro").unit(Progress(2, 6, UNIT, rows, 12.3))
    assert capsys.readouterr().err == "2/6  compression  vocab_size=32  62.5 % with lr 0.0005 decay 0  12 s\n"


def test_on_a_terminal_the_running_setting_is_a_bar_of_its_steps(tmp_path):
    ours, theirs = pty.openpty()
    arguments = ["mad", "run", "--layers", "mlp", "--preset", "smoke", "--nproc", "1", "--tasks", "compression"]
    process = warm.Popen(
        command(*arguments, "--set", "seq_len=8", "--steps", "150", "--out", "out"),
        cwd=tmp_path,
        env={**environment(), "TERM": "xterm", "COLUMNS": "120"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux ends a pseudo-terminal so
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"compression  seq_len=8 .*\d+/150 +\d+\.\d %", text)
    assert "1/1  compression  seq_len=8" in text

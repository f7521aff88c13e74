from types import SimpleNamespace
from typing import Any, cast

from hybridtron.training.callbacks.base import TrainContext
from hybridtron.training.callbacks.progress import ProgressBar
from tests.training.runs import resolved_tiny


def shown_of_a_run(visible, capsys):
    config = resolved_tiny()
    state = SimpleNamespace(step=0, skipped_in_a_row=0)
    context = TrainContext(config, *cast("list[Any]", [state, (), None, None, None, None, None, print]))
    progress = ProgressBar(visible)
    progress.on_train_start(context)
    rate = config.tokens_per_step * (config.train.steps - 1) / 90  # 90 s are left after the first step
    row = {"loss": 5.5, "step_loss": 5.75, "tokens_per_s": rate}
    progress.after_step(context, {**row, "step": 1}, logged=True)
    progress.after_step(context, {**row, "step": 2}, logged=False)
    state.skipped_in_a_row = 1
    progress.after_step(context, {**row, "step": 3}, logged=False)
    state.skipped_in_a_row = 0
    last = {**row, "step": config.train.steps, "tokens_per_s": 5234.0, "valid_loss": 2.5, "valid_bits_per_byte": 1.2}
    progress.after_step(context, last, logged=True)
    progress.close()
    return config.train.steps, capsys.readouterr().err.splitlines()


def test_without_a_terminal_logged_steps_skipped_ones_and_evaluations_are_lines(capsys):
    steps, (first, skipped, last, held_out) = shown_of_a_run(True, capsys)
    assert first.startswith(f"step 1/{steps}  loss 5.5000  ")
    assert first.endswith(" tokens/s  1.5 min left")
    assert skipped == "step 3: loss 5.75 or a gradient is not finite; the step is skipped"
    assert last == f"step {steps}/{steps}  loss 5.5000  5.2k tokens/s"
    assert held_out == f"step {steps}: held-out loss 2.5000 = 1.200 bits per byte"


def test_only_the_main_process_shows_progress(capsys):
    assert shown_of_a_run(False, capsys)[1] == []

"""Progress of a run on standard error: a bar on a terminal, else a line per logged step."""

from __future__ import annotations

from hybridtron.reporting.numbers import duration, short_number
from hybridtron.reporting.progress import ProgressView
from hybridtron.training.callbacks.base import Callback, Row, TrainContext


class ProgressBar(Callback):
    """Print progress, skipped steps and evaluations; nothing where not `visible`."""

    def __init__(self, visible: bool) -> None:
        self.view = ProgressView(quiet=not visible, seconds_between_lines=0)
        self.print_line = self.view.print

    def on_train_start(self, context: TrainContext) -> None:
        """Show the bar, where standard error is a terminal."""
        if self.view.bars and context.state.step < context.config.train.steps:
            self.view.update(context.config.name, context.state.step, context.config.train.steps)

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Advance the bar or print the step's line; print a skipped update and an evaluation in any case."""
        config, step, rate = context.config, row["step"], row["tokens_per_s"]
        steps = config.train.steps
        if self.view.bars or logged:
            status = f"loss {row['loss']:.4f}  {short_number(float(f'{rate:.2g}'))} tokens/s"
            left = f"  {duration(config.tokens(step, steps) / rate)} left" if step < steps else ""
            self.view.update(config.name, step, steps, status, f"step {step}/{steps}  {status}{left}")
        if context.state.skipped_in_a_row:
            self.print_line(f"step {step}: loss {row['step_loss']} or a gradient is not finite; the step is skipped")
        if "valid_loss" in row:
            bits = row["valid_bits_per_byte"]
            in_bits = "" if bits is None else f" = {bits:.3f} bits per byte"
            apart = [
                f"{key.partition('/')[2]} {loss:.4f}" for key, loss in row.items() if key.startswith("valid_loss/")
            ]
            of_each = f" ({', '.join(apart)})" if apart else ""
            averaged = f"; {row['ema_valid_loss']:.4f} with the average of weights" if "ema_valid_loss" in row else ""
            self.print_line(f"step {step}: held-out loss {row['valid_loss']:.4f}{in_bits}{of_each}{averaged}")

    def close(self) -> None:
        """Give the terminal back."""
        self.view.close()

"""The progress of a suite: a line for every setting that is done, and the steps of those that train."""

from __future__ import annotations

from hybridtron.mad.tasks.protocol import setting_text
from hybridtron.mad.training.suite import Progress, Steps, Unit
from hybridtron.reporting.progress import ProgressView


class SuiteProgress(ProgressView):
    """A progress view that takes the reports of `run_suite`."""

    def __init__(self, accuracy: str, seconds_between_lines: float = 60) -> None:
        """Show accuracies of this kind, micro or macro, of each setting's best cell."""
        super().__init__(seconds_between_lines=seconds_between_lines)
        self.accuracy = accuracy

    def steps(self, unit: Unit, steps: Steps) -> None:
        """Show how far the training on a setting is."""
        status = "" if steps.accuracy is None else f"{100 * steps.accuracy:.1f} %"
        self.update(_name(unit), steps.done, steps.planned, status)

    def unit(self, progress: Progress) -> None:
        """Print the best cell of a setting that is done."""
        name = _name(progress.unit)
        self.finish(name)
        best = max(progress.rows, key=lambda row: row[f"select_{self.accuracy}"])
        reached = f"{100 * best[f'test_{self.accuracy}']:.1f} % with lr {best['lr']:g} decay {best['weight_decay']:g}"
        self.print(f"{progress.done}/{progress.total}  {name}  {reached}  {progress.seconds:.0f} s")


def _name(unit: Unit) -> str:
    return f"{unit.task}  {setting_text(unit.task, unit.setting)}"

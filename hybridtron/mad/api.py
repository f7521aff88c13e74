"""Score one architecture from Python: `hybridtron.mad.score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import Architecture, from_layers, from_pattern
from hybridtron.mad.models.candidate import Candidate
from hybridtron.mad.models.equal_size import with_size_of
from hybridtron.mad.models.iso_state import iso_state as with_iso_state
from hybridtron.mad.models.module import Factory, ModuleCandidate, from_module, require_picklable
from hybridtron.mad.report import write  # noqa: F401  # registers how a score is printed
from hybridtron.mad.scoring.aggregate import renamed, scores
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.scoring.selection import rows_of_call
from hybridtron.mad.training.presets import Preset
from hybridtron.mad.training.presets import preset as find_preset
from hybridtron.mad.training.suite import Progress, chosen_settings, require_seeds, run_suite

Layers = str | Sequence[str]  # of MAD: a pattern or a list


def score(
    pattern: str | Sequence[str] | Candidate | Factory,
    preset: str | Preset = "smoke",
    tasks: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] = 1,
    out: str | Path | None = None,
    processes: int = 1,
    device: str = "cpu",
    iso_state: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    setting: Mapping[str, int | float] | None = None,
    data: str | Path | None = None,
    match_parameters: Layers | Architecture | None = None,
    adjust: str | None = None,
) -> Score:
    """Train an architecture on MAD's tasks and return its score.

    Args:
        pattern: layers of MAD as a pattern, such as `2*(mh-hyena swiglu)`, or as a list; an Architecture; or a factory
            of any torch.nn.Module (`from_module`).
        preset: `paper`, `madlab`, `madlab-2024-03`, `search`, `smoke`, or a Preset.
        tasks: names of tasks; by default all six.
        seeds: how many, from 0 on, or which.
        out: folder that keeps the results, from which the same call continues; by default nothing is kept.
        processes: processes to train in. More than one start this program again, so a script needs
            `if __name__ == "__main__":`.
        device: `cpu`, `cuda` or, for one of several GPUs, `cuda:1`.
        iso_state: change layers so that their states add up to 4,096 elements.
        match_parameters: a baseline, given as `pattern` is; one width is changed so that the architecture has as many
            parameters, within 1 %.
        adjust: that width, `model.hidden_size` or `model.blocks.NAME.KEY`; by default that of the largest
            feed-forward layer.
        on_progress: called after each setting.
        data: folder of examples as mad-lab stores them, for preset `madlab`; by default they are generated.
        setting: changes from each task's baseline; trains that one setting of each task.

    Raises:
        UserError: for an unknown name, an impossible number or setting, and an `out` that cannot be used.
        SuiteFailed: where a process died.
    """
    chosen = find_preset(preset, data=data)
    candidate = _adjusted(_candidate(pattern, chosen.match_mad_lab), chosen, iso_state, match_parameters, adjust)
    if processes > 1 and isinstance(candidate, ModuleCandidate):
        require_picklable(candidate, processes)
    names = [tasks] if isinstance(tasks, str) else tasks
    if names is not None and not isinstance(names, Sequence):
        raise UserError(f"tasks = {tasks!r}: expected a task, or a list of them")
    settings = chosen_settings(chosen, names, setting or {})
    seeds = require_seeds(seeds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()) if out is None else out)
        rows = run_suite(
            candidate, chosen, settings, seeds, folder,
            processes=processes, device=device, on_unit=on_progress,
        )  # fmt: skip
    (found,) = scores(rows_of_call(rows, chosen, settings, seeds))
    return renamed(found, candidate.name, candidate.notes)[0]


def _candidate(pattern: str | Sequence[str] | Candidate | Factory, match_mad_lab: bool) -> Candidate:
    if isinstance(pattern, Candidate):
        return pattern
    if callable(pattern):
        return from_module(pattern)
    if isinstance(pattern, str):
        return from_pattern(pattern, match_mad_lab)
    if not isinstance(pattern, Sequence) or not all(isinstance(layer, str) for layer in pattern):
        raise UserError(f"pattern = {pattern!r}: expected text, a list of layers, or a factory of a module")
    return from_layers(pattern, match_mad_lab)


def _adjusted(
    candidate: Candidate,
    chosen: Preset,
    iso_state: bool,
    match_parameters: Layers | Architecture | None,
    adjust: str | None,
) -> Candidate:
    """Return the candidate with the state or the size that is asked for. Raises UserError where it has no such size."""
    if iso_state:
        if not isinstance(candidate, Architecture):
            raise UserError("iso_state: is for layers of MAD; expected none with a module")
        candidate = with_iso_state(candidate)
    if adjust is not None and match_parameters is None:
        raise UserError(f"adjust = {adjust}: is for match_parameters; expected a baseline there")
    if match_parameters is not None:
        baseline = _candidate(match_parameters, chosen.match_mad_lab)
        if not isinstance(candidate, Architecture) or not isinstance(baseline, Architecture):
            raise UserError("match_parameters: is for layers of MAD; expected none with a module")
        candidate = with_size_of(candidate, baseline, adjust=adjust)
    return candidate

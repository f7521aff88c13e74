"""What rows say of how they were trained, where it is not as the preset of their name has it."""

from __future__ import annotations

from collections.abc import Sequence

from hybridtron.mad.scoring.results import Row
from hybridtron.mad.training.presets import PRESETS


def changes(rows: Sequence[Row]) -> str:
    """What differs from the preset as it is now, for rows of one protocol; empty where nothing does."""
    first = rows[0]
    preset = PRESETS.get(first["preset"])
    if preset is None:
        return "no preset of this version"
    if first["protocol"] == preset.fingerprint() and first["num_cells"] == len(preset.cells):
        return ""
    planned = max(row.get("planned_steps", 0) for row in rows)
    steps = max(preset.steps(row["setting"]["num_train_examples"]) for row in rows)
    batches = {row.get("batch_size", preset.batch_size) for row in rows}
    pairs = (
        (f"batches of {max(batches)}", f"{preset.batch_size}"),
        (f"steps {planned:,}", f"{steps:,}"),
        (f"cells {first['num_cells']}", f"{len(preset.cells)}"),
        (f"accuracy {first['accuracy']}", preset.accuracy),
        (f"selected on {first['selected_on']}", preset.select_split),
    )
    said = [f"{found} in place of {expected}" for found, expected in pairs if found.split()[-1] != expected]
    return "; ".join(said) or "another batch size, schedule, evaluation or version"

"""Select the rows of a score: the best cell of every setting and seed, and the seeds that have the same settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hybridtron.mad.scoring.results import Row, key, make_key
from hybridtron.mad.tasks.protocol import TASKS, Setting, complete, setting_text
from hybridtron.mad.training.presets import Preset

BySetting = dict[str, dict[int, Row]]  # setting as JSON -> seed -> the chosen row


def rows_of_call(
    rows: Sequence[Row], preset: Preset, settings: Sequence[tuple[str, Setting]], seeds: Sequence[int]
) -> list[Row]:
    """Return the rows of these settings, cells and seeds; a folder may hold more."""
    asked = {
        make_key("", "", name, complete(name, setting), cell.lr, cell.weight_decay, seed)[2:]
        for name, setting in settings
        for cell in preset.cells
        for seed in seeds
    }
    return [row for row in rows if key(row)[2:] in asked]


def chosen_cells(rows: Sequence[Row]) -> tuple[dict[str, BySetting], list[str]]:
    """Choose, by task, the best cell of each setting and seed with all its cells; also list what is left out."""
    cells: dict[str, dict[str, dict[int, list[Row]]]] = {name: {} for name in TASKS}
    for row in rows:
        if row["task"] not in cells:
            continue
        text = json.dumps(row["setting"], sort_keys=True)
        cells[row["task"]].setdefault(text, {}).setdefault(row["seed"], []).append(row)
    chosen: dict[str, BySetting] = {}
    left_out = []
    for name, by_setting in cells.items():
        chosen[name] = {}
        for setting in sorted(by_setting, key=lambda text: _order(name, json.loads(text))):
            for seed, some in sorted(by_setting[setting].items()):
                wanted = max(row["num_cells"] for row in some)
                if len(some) < wanted:
                    words = setting_text(name, json.loads(setting))
                    left_out.append(f"{name}, {words}, seed {seed}: {len(some)} of {wanted} cells, left out")
                else:
                    best = max(some, key=_selecting(some[0]["accuracy"]))
                    chosen[name].setdefault(setting, {})[seed] = best
    return chosen, left_out


def of_whole_seeds(name: str, chosen: BySetting) -> tuple[BySetting, list[str]]:
    """Keep the settings of the seed that has most, and every seed that has them all; also list what is left out."""
    have: dict[int, set[str]] = {}
    for setting, by_seed in chosen.items():
        for seed in by_seed:
            have.setdefault(seed, set()).add(setting)
    most = max(sorted(have), key=lambda seed: len(have[seed]))
    whole = [seed for seed in sorted(have) if have[seed] >= have[most]]
    left_out = [
        f"{name}, seed {seed}: {len(have[seed] & have[most])} of the {len(have[most])} settings that seed {most} has, "
        "left out"
        for seed in sorted(have)
        if seed not in whole
    ]
    left_out += [
        f"{name}, {setting_text(name, json.loads(setting))}: not there for seed {most}, left out"
        for setting in chosen
        if setting not in have[most]
    ]
    kept = {s: {seed: by_seed[seed] for seed in whole} for s, by_seed in chosen.items() if s in have[most]}
    return kept, left_out


def _selecting(kind: str) -> Any:
    """Return the sort key that selects a cell; ties go to the smaller learning rate and decay."""
    return lambda row: (row[f"select_{kind}"], -row["lr"], -row["weight_decay"])


def _order(name: str, setting: dict[str, Any]) -> tuple[Any, ...]:
    """Return the sort key of the protocol's table: the baseline, then key by key from easy to hard."""
    baseline = TASKS[name].baseline
    changed = [(list(baseline).index(key), value) for key, value in setting.items() if value != baseline[key]]
    return tuple((index, -value if index == 2 else value) for index, value in changed)

"""How a setting is trained and scored. What the paper leaves open is as mad-lab's configs have it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.mad.tasks.protocol import NUM_TEST_EXAMPLES


@dataclass(frozen=True)
class Cell:
    """One cell of the optimiser's grid."""

    lr: float
    weight_decay: float

    def __str__(self) -> str:
        return f"lr {self.lr:g} decay {self.weight_decay:g}"


# Part of every preset's fingerprint: raise it with any change to how the same preset trains, draws or scores, so that
# rows of before are not taken for rows of now.
PROCEDURE = 4

GRID = tuple(Cell(lr, decay) for lr, decay in product((1e-4, 5e-4, 1e-3), (0.0, 0.1)))


@dataclass(frozen=True)
class Preset:
    """Training of one setting, and which accuracy of which split chooses the best cell.

    A cell stops where the selecting accuracy reaches `stop_at`, or where over `patience` evaluations neither it has
    grown by `least_gain` nor the loss of its split fallen by so many nats. `match_mad_lab`: layers as
    mad-lab's code has them, and weight decay on every parameter.
    """

    name: str
    cells: tuple[Cell, ...] = GRID
    epochs: int = 200
    max_steps: int | None = None
    batch_size: int = 128
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Literal["cosine", "constant"] = "cosine"
    select_split: Literal["valid", "test"] = "valid"
    accuracy: Literal["micro", "macro"] = "micro"
    stop_at: float = 0.999
    patience: int | None = None
    least_gain: float = 0.005
    evaluations: int = 100
    settings: Literal["all", "baseline"] = "all"
    eval_examples: int | None = None
    match_mad_lab: bool = False
    normal_init: bool = False  # all linear maps of an architecture start as in mad-lab before December 2024
    halving: bool = False  # the worse half of a seed's cells ends at an eighth, a quarter and a half of the steps
    data: str | None = None  # folder of examples (`tasks.stored`) in place of generated ones

    @property
    def scores_best_evaluation(self) -> bool:
        """Return whether, as in mad-lab, the weights of the evaluation with the least perplexity count, not the last.

        Lightning's `validate` loads the best checkpoint where it is given no model.
        """
        return self.match_mad_lab and self.select_split == "test"

    def steps(self, num_train_examples: int) -> int:
        """Count optimiser steps: those of all epochs, whose last batches may be smaller, at most `max_steps`."""
        return min(self.epochs * self.steps_per_epoch(num_train_examples), self.max_steps or 1 << 62)

    def steps_per_epoch(self, num_train_examples: int) -> int:
        return -(-num_train_examples // self.batch_size)

    def steps_between_evaluations(self, num_train_examples: int) -> int:
        """Divide the steps by `evaluations`; but without `match_mad_lab` train at least one evaluation's examples."""
        steps = self.steps(num_train_examples)
        batch = min(self.batch_size, num_train_examples)
        least = 1 if self.match_mad_lab else -(-(self.eval_examples or NUM_TEST_EXAMPLES) // batch)
        return min(steps, max(-(-steps // self.evaluations), least))

    def as_json(self) -> dict[str, Any]:
        """Return the fields and the procedure under the keys that recorded rows and searches have."""
        fields = asdict(self)
        quirks = fields.pop("match_mad_lab")
        for name in ("data", "normal_init", "halving"):
            if not fields[name]:
                del fields[name]
        return {**fields, "quirks": quirks, "procedure": PROCEDURE}

    def fingerprint(self) -> str:
        """Return twelve digits that change with anything that changes what is trained."""
        fields = self.as_json()
        cells = fields["cells"] if self.halving else None  # a row depends on the other cells only then
        text = json.dumps(fields | {"cells": cells, "settings": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


_MADLAB = Preset(
    "madlab",
    betas=(0.9, 0.999),
    schedule="constant",
    select_split="test",
    accuracy="macro",
    evaluations=200,
    match_mad_lab=True,
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("paper"),
        _MADLAB,
        replace(_MADLAB, name="madlab-2024-03", normal_init=True),
        Preset("search", cells=(Cell(1e-3, 0.0),), max_steps=2000, patience=8, evaluations=25, settings="baseline"),
        Preset(
            "smoke",
            cells=(Cell(1e-3, 0.0),),
            max_steps=8,
            batch_size=8,
            evaluations=2,
            settings="baseline",
            eval_examples=32,
        ),
    )
}


def require_at_least_one(**values: int | None) -> None:
    """Raise UserError, with the name, for a number below 1; None is no number."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"{name} = {value}: expected at least 1")


def preset(
    name: str | Preset,
    *,
    lr: float | Sequence[float] | None = None,
    weight_decay: float | Sequence[float] | None = None,
    **changes: Any,
) -> Preset:
    """Return the preset, or that of this name, with some of its fields changed; a change to None keeps its own.

    `lr` and `weight_decay` replace those of its cells, which are their product.

    Raises:
        UserError: for an unknown preset, with the nearest name, and for a number or data that are impossible.
    """
    if isinstance(name, str) and name not in PRESETS:
        raise UserError(f"preset {name!r}: expected {one_of(name, PRESETS)}")
    base = PRESETS[name] if isinstance(name, str) else name
    if not isinstance(base, Preset):
        raise UserError(f"preset = {name!r}: expected a name or a Preset")
    if unknown := next((name for name in changes if name not in Preset.__dataclass_fields__), None):
        raise UserError(f"{unknown}: no setting of a preset; expected {one_of(unknown, Preset.__dataclass_fields__)}")
    lr, weight_decay = ([value] if isinstance(value, int | float) else value for value in (lr, weight_decay))
    require_at_least_one(**{key: changes.get(key) for key in ("max_steps", "batch_size", "epochs")})
    rates = [cell.lr for cell in base.cells] if lr is None else lr
    decays = [cell.weight_decay for cell in base.cells] if weight_decay is None else weight_decay
    for key, numbers in (("lr", rates), ("weight_decay", decays)):
        if not numbers:
            raise UserError(f"{key} = []: expected at least one number, or None for the preset's")
    for value in rates:
        if not 0 < value < math.inf:
            raise UserError(f"lr = {value:g}: expected a positive number")
    for value in decays:
        if not 0 <= value < math.inf:
            raise UserError(f"weight_decay = {value:g}: expected a number of at least 0")
    if lr is not None or weight_decay is not None:
        changes["cells"] = tuple(dict.fromkeys(Cell(*pair) for pair in product(rates, decays)))
    if changes.get("halving") and len(changes.get("cells", base.cells)) < 2:
        raise UserError("halving: is for several cells; expected several of `lr` or weight_decay")
    if changes.get("data") is not None:
        if base.select_split != "test":
            raise UserError(f"data {changes['data']}: has no validation split; expected `preset` madlab with it")
        changes["data"] = str(Path(changes["data"]).resolve())
    return replace(base, **{key: value for key, value in changes.items() if value is not None})


def preset_changes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe how rows of one protocol differ from the preset of their name as it is now; empty where they do not."""
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
    stored = {row["data"] for row in rows if "data" in row}
    found = [f"examples of {folder}" for folder in sorted(stored)]
    found += ["cells pruned by successive halving"] if any(row.get("halving") for row in rows) else []
    found += [f"{was} in place of {now}" for was, now in pairs if was.split()[-1] != now]
    return "; ".join(found) or "another batch size, schedule, evaluation or version"

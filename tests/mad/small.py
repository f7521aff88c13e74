"""A suite of a second, and a row as a suite writes it."""

from __future__ import annotations

from hybridtron.mad.models.architecture import from_layers
from hybridtron.mad.training.presets import Cell, preset

ARCHITECTURE = from_layers(["mh-attention"])
PRESET = preset("smoke", max_steps=2, batch_size=4, eval_examples=8, cells=(Cell(1e-3, 0.0), Cell(5e-4, 0.1)))
SETTINGS = [
    (task, {"vocab_size": vocab, "seq_len": 14, "num_train_examples": 16, **more})
    for task, more in (("compression", {}), ("selective-copying", {"num_tokens_to_copy": 3}), ("in-context-recall", {}))
    for vocab in (8, 10, 12, 14)
]


def row(**changes):
    made = {
        "architecture": "mh_attention", "pattern": "mh_attention", "notes": [], "parameters": 66048,
        "state_size": 32768, "fingerprint": "f", "preset": "paper", "protocol": preset("paper").fingerprint(),
        "accuracy": "micro", "selected_on": "valid", "num_cells": 1, "task": "compression",
        "setting": {"vocab_size": 16, "seq_len": 32, "num_train_examples": 12800}, "lr": 1e-3, "weight_decay": 0.0,
        "seed": 0, "steps": 10, "planned_steps": 10, "stopped": "end", "test_micro": 0.5, "test_macro": 0.4,
        "test_loss": 1.0, "select_micro": 0.5, "select_macro": 0.4, "select_loss": 1.0,
        "curve": [[5, 2.0, 0.3, 0.2], [10, 1.0, 0.5, 0.4]], "seconds": 1.0, "device": "cpu", "version": "0",
    }  # fmt: skip
    return made | changes

"""A tiny study for several tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridtron.ablations.cells import Plan, make_plan
from hybridtron.ablations.config import AblationConfig
from hybridtron.config.load import load

STEPS = 4
SHORT = [f"train.steps={STEPS}", "schedule.warmup_steps=1", "train.log_every=1"]
LEARNING_RATE = {"type": "grid", "key": "optimizer.lr", "values": [1e-3, 3e-3]}
LAYERS = {"type": "variants", "variants": {"hybrid": [], "attention": ["model.pattern=2*(attn mlp)"]}}


def study(run: Path, **changes: Any) -> dict[str, Any]:
    """Return the config of a study of the run, which lies beside it."""
    return {
        "name": "tiny",
        "folder": str(run.parent / "study"),
        "run": str(run),
        "overrides": SHORT,
        "seeds": [0, 1],
        "axes": {"lr": LEARNING_RATE},
        **changes,
    }


def plan(run: Path, **changes: Any) -> Plan:
    """Return the plan of such a study."""
    return make_plan(load(study(run, **changes), (), AblationConfig))

"""The keys of a checkpoint's tensors: a parameter's name, and before it what an optimizer keeps of that parameter."""

from __future__ import annotations

OPTIMIZER = "optimizer."  # how the keys of the optimizer's tensors begin
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
MOMENTUM = "momentum"  # of Muon
FLOAT32_VALUES = "param"  # of a bf16 parameter
EMA = "ema"  # the average of weights
KINDS = (*MOMENTS, MOMENTUM, FLOAT32_VALUES, EMA)


def optimizer_key(kind: str, parameter: str = "") -> str:
    """Return the key of what the optimizer keeps of a parameter; without one, how all keys of this kind begin."""
    return f"{OPTIMIZER}{kind}.{parameter}"

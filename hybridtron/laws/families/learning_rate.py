"""lr_opt = k C^s: the best learning rate against compute, from the loss minimum of each budget's learning-rate sweep.

The form of the DeepSeek LLM report (2401.02954, section 3.1). Each budget's loss is fitted by a local parabola in
log learning rate, as `isoflop` does in log N.
"""

from __future__ import annotations

from hybridtron.laws.fitting.parabola import Axis, Parabolas

LAW = Parabolas(
    name="learning-rate",
    summary="lr_opt = k C^s: best learning rate against compute, from a local parabola in log lr for each budget",
    axes={"learning_rate": Axis("learning_rate", "s", "k", "best learning rate")},
    window=8.0,
    windows=lambda window: [other for other in (window / 2, window * 2) if other > 1],
    objective="squared residual of loss about the parabolas in log learning rate, summed",
    budget=lambda one: {
        "flops": one.budget, "learning_rate": one.x, "loss": one.loss, "kept": one.kept, "reason": one.reason
    },
    panel="sweeps",
    x_label="learning rate",
).law()  # fmt: skip
